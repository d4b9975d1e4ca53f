// What a person does with the page, in a real browser: clicked, typed and read.
//
// crates/e2e/tests/html.rs makes the pages and starts this, with LEAKSCOPE_PAGES as their folder. Beside each page
// NAME.html lies NAME.json: what the JSON report says of the same recording.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { after, before, test } from "node:test";

import { flameIsDrawn, launch, visit as inBrowser } from "./browser.mjs";

const folder = process.env.LEAKSCOPE_PAGES;
assert.ok(folder, "LEAKSCOPE_PAGES is not set; run `cargo test -p leakscope-e2e --test html`");

let browser;

before(async () => { browser = await launch(); });

after(async () => browser?.close());

/** Opens a page and hands it over, with what the JSON report says. */
function visit(name, options, look) {
  const address = `file://${folder}/${name}.html`;
  return inBrowser(browser, address, (request) => request.url() === address, options, async (page) => {
    await flameIsDrawn(page);
    await look(page, JSON.parse((await readFile(`${folder}/${name}.json`, "utf8")).split("\n")[0]));
  });
}

const grouped = (number) => new Intl.NumberFormat("en-US").format(number);
const frames = (page) => page.$$eval(".flame g.frame", (all) => all.map((one) => one.getAttribute("aria-label")));
/** Waits until a frame of this function is drawn, or none is: the graph is drawn again at the browser's next tick. */
const drawn = (page, name, is) => page.waitForFunction(
  ([name, is]) => Boolean(document.querySelector(`.flame g.frame[aria-label^="${name}:"]`)) === is, [name, is]);
const rootLabel = (page) => page.getAttribute(".flame g.frame >> nth=0", "aria-label");
const active = (page) => page.evaluate(() => document.activeElement.getAttribute("aria-label") ?? document.activeElement.textContent);

test("totals are those of the JSON report", () =>
  visit("orders", {}, async (page, report) => {
    const cards = await page.$$eval(".card", (all) => all.map((card) => card.textContent));
    const { definite, indirect } = report.leak_totals;
    assert.ok(cards.some((card) => card.startsWith("Definitely lost") && card.endsWith(`in ${definite.blocks} blocks`)), cards);
    assert.ok(cards.some((card) => card.startsWith("Indirectly lost") && card.endsWith(`in ${indirect.blocks} blocks`)), cards);
    assert.match(await page.title(), /orders/);
    const leaked = definite.bytes + indirect.bytes + report.leak_totals.possible.bytes;
    assert.ok((await rootLabel(page)).includes(`(${grouped(leaked)} bytes), 100.0 %`));
  }));

test("each metric has its flame graph", () =>
  visit("orders", {}, async (page, report) => {
    const roots = {
      Live: `(${grouped(report.heap.in_use_bytes)} bytes)`,
      Total: `(${grouped(report.heap.allocated_bytes)} bytes)`,
      Leaked: "bytes)", Peak: "bytes)", Temporary: "blocks",
    };
    for (const [metric, words] of Object.entries(roots)) {
      await page.click(`.choice >> text=${metric}`);
      const graph = await page.isVisible(".flame");
      if (graph) assert.ok((await rootLabel(page)).includes(words), metric);
      else assert.match(await page.textContent(".empty"), /Nothing to show/);
    }
  }));

test("a click zooms in, and a button out", () =>
  visit("orders", {}, async (page) => {
    const rect = '.flame g.frame[aria-label^="print_total:"] rect';
    const before = await page.$eval(rect, (rect) => Number(rect.getAttribute("width")));
    const widthIs = (width) => page.waitForFunction(
      ([rect, width]) => Math.abs(Number(document.querySelector(rect)?.getAttribute("width")) - width) < 1, [rect, width]);
    const whole = await page.$eval(".flame svg", (svg) => Number(svg.getAttribute("width")));
    assert.ok(before < whole / 2);
    await page.click('.flame g.frame[aria-label^="print_total:"]');
    await widthIs(whole);
    assert.match(await page.textContent(".status"), /^print_total: /);
    // Siblings are out of sight.
    await drawn(page, "read_orders", false);
    await page.click("text=Reset zoom");
    await widthIs(before);
    await drawn(page, "read_orders", true);
  }));

test("search marks functions and adds them up", () =>
  visit("orders", {}, async (page, report) => {
    await page.keyboard.press("f");
    await page.keyboard.type("PRINT_");
    await page.waitForFunction(() => document.querySelector("#flame-found").textContent !== "");
    const bytes = report.records.filter((record) => record.kind === "definite" && record.stack.frames.some((frame) => frame.function === "print_total")).reduce((sum, record) => sum + record.bytes, 0);
    assert.ok((await page.textContent("#flame-found")).startsWith(`1 frames, ${bytes} B (${bytes} bytes)`), await page.textContent("#flame-found"));
    const marked = await page.$$eval('.flame rect[fill="#ffe14d"]', (all) => all.map((rect) => rect.parentNode.getAttribute("name")));
    assert.deepEqual(marked, ["print_total"]);
    await page.fill("#flame-search", "");
    await page.waitForFunction(() => document.querySelector("#flame-found").textContent === "");
    assert.equal((await page.$$('.flame rect[fill="#ffe14d"]')).length, 0);
  }));

test("the flame graph needs no mouse", () =>
  visit("orders", {}, async (page) => {
    await page.focus("text=Reset zoom");
    await page.keyboard.press("Tab");
    assert.match(await active(page), /^all: /);
    await page.keyboard.press("ArrowDown");
    assert.match(await active(page), /^main: /);
    await page.keyboard.press("ArrowDown");
    assert.match(await active(page), /^read_orders: /);
    await page.keyboard.press("ArrowRight");
    assert.match(await active(page), /^print_total: /);
    assert.match(await page.textContent(".status"), /^print_total: /);
    await page.keyboard.press("Enter");
    assert.match(await active(page), /^print_total: /);
    await drawn(page, "read_orders", false);
    await page.keyboard.press("Escape");
    await drawn(page, "read_orders", true);
    assert.match(await active(page), /^all: /);
    assert.equal((await page.$$('.flame g[tabindex="0"]')).length, 1, "one stop of Tab");
  }));

const column = (page, label) => page.$$eval(`.record td[data-label="${label}"]`, (cells) => cells.map((cell) => cell.textContent));
const numbers = async (page, label) => (await column(page, label)).map((text) => Number(text.replaceAll(",", "")));

test("the table sorts and filters", () =>
  visit("orders", {}, async (page, report) => {
    const all = report.records.length;
    assert.equal((await page.$$(".record")).length, all);
    const descending = await numbers(page, "Bytes");
    assert.deepEqual(descending, [...descending].sort((a, b) => b - a));
    await page.click("th button >> text=Bytes");
    assert.equal(await page.getAttribute('th[data-column="bytes"]', "aria-sort"), "ascending");
    assert.deepEqual(await numbers(page, "Bytes"), [...descending].reverse());
    await page.focus("th button >> text=Function");
    await page.keyboard.press("Enter");
    const functions = (await column(page, "Function")).map((text) => text.split("fixtures/")[0]);
    assert.deepEqual(functions, [...functions].sort((a, b) => a.localeCompare(b)));
    assert.equal(await page.getAttribute('th[data-column="bytes"]', "aria-sort"), null);

    await page.uncheck('input[value="leak-indirect"]');
    const definite = report.records.filter((record) => record.kind === "definite").length;
    assert.equal((await page.$$(".record")).length, definite);
    assert.ok((await page.textContent("#records-found")).startsWith(`${definite} of ${all}`));
    await page.check('input[value="leak-indirect"]');

    const lines = (await page.$$(".record")).length;
    await page.keyboard.press("/");
    await page.keyboard.type("orders.cpp:27");
    await page.waitForFunction((before) => document.querySelectorAll(".record").length < before, lines);
    assert.deepEqual((await column(page, "Function")).map((text) => text.split("fixtures/")[0]), ["print_total"]);
    await page.fill("#filter-text", "no such thing");
    await page.waitForFunction(() => document.querySelectorAll(".record").length === 0);
    assert.equal(await page.textContent("#records-found"), "No finding fits.");
    await page.fill("#filter-text", "");
    await page.fill("#filter-function", "charge");
    await page.waitForFunction(() => document.querySelectorAll(".record").length > 0);
    assert.ok((await column(page, "Function")).every((text) => text.startsWith("charge")));
    await page.fill("#filter-function", "");
    await page.waitForFunction((count) => document.querySelectorAll(".record").length === count, all);
    const modules = await page.$$eval("#filter-module option", (options) => options.map((option) => option.textContent));
    assert.deepEqual(modules, ["All modules", "orders"]);
    await page.selectOption("#filter-module", { label: "orders" });
    assert.equal((await page.$$(".record")).length, all);
  }));

test("a finding opens to its stack and source", () =>
  visit("orders", {}, async (page, report) => {
    await page.fill("#filter-text", "orders.cpp:27");
    await page.waitForFunction(() => document.querySelectorAll(".record").length === 1);
    await page.focus(".record .open");
    await page.keyboard.press("Enter");
    assert.equal(await page.getAttribute(".record .open", "aria-expanded"), "true");
    const record = report.records.find((record) => record.stack.frames.some((frame) => frame.function === "print_total"));
    const detail = await page.textContent(".detail");
    assert.ok(detail.includes(record.fingerprint), detail);
    const names = await page.$$eval(".detail .stack .function", (all) => all.map((one) => one.textContent));
    assert.deepEqual(names, record.stack.frames.slice(0, record.stack.shown).map((frame) => frame.function));
    const frame = record.stack.frames.find((frame) => frame.function === "print_total");
    const source = (await readFile(`${frame.directory}/${frame.file}`, "utf8")).split("\n");
    const here = page.locator(".source .here >> nth=0");
    assert.ok(await here.isVisible());
    assert.equal((await here.textContent()).trimEnd(), `${frame.line}${source[frame.line - 1]}`);
    const shown = await page.locator(".source >> nth=0").locator(".line").allTextContents();
    assert.deepEqual(shown.map((line) => line.trimEnd()), source.slice(frame.line - 5, frame.line + 4).map((line, number) => `${frame.line - 4 + number}${line}`.trimEnd()));
    await page.keyboard.press("Enter");
    assert.equal(await page.getAttribute(".record .open", "aria-expanded"), "false");
    assert.ok(!(await page.isVisible(".detail")));
  }));

const background = (page) => page.evaluate(() => getComputedStyle(document.body).backgroundColor);

test("colours follow the system until they are chosen", async () => {
  let light, dark;
  await visit("orders", { colorScheme: "light" }, async (page) => {
    light = await background(page);
    await page.focus(".theme");
    await page.keyboard.press("Enter");
    dark = await background(page);
    assert.notEqual(light, dark);
    assert.equal(await page.getAttribute(".theme", "aria-label"), "Use light colours");
  });
  await visit("orders", { colorScheme: "dark" }, async (page) => {
    assert.equal(await background(page), dark);
    await page.click(".theme");
    assert.equal(await background(page), light);
  });
});

for (const name of ["orders", "compiler", "hostile"]) {
  test(`${name}: nothing is wider than a telephone`, () =>
    visit(name, { viewport: { width: 400, height: 800 } }, async (page) => {
      if (await page.isVisible(".record .open")) await page.click(".record .open");
      assert.ok((await page.evaluate(() => document.documentElement.scrollWidth)) <= 400);
      await page.screenshot({ path: `${folder}/${name}-400.png`, fullPage: true });
    }));

  test(`${name}: everything that can be used has a name`, () =>
    visit(name, { colorScheme: "dark" }, async (page) => {
      const nameless = await page.$$eval("button, input, select, summary, a, g[role=button], [role=group], [role=img], section", (all) =>
        all.filter((one) => {
          const by = one.getAttribute("aria-labelledby");
          const words = one.getAttribute("aria-label") ?? (by ? document.getElementById(by)?.textContent : null)
            ?? one.closest("label")?.textContent ?? one.textContent;
          return !words?.trim();
        }).map((one) => one.outerHTML.slice(0, 200)));
      assert.deepEqual(nameless, []);
      await page.screenshot({ path: `${folder}/${name}-1280-dark.png`, fullPage: true });
    }));
}

test("the heap over time is drawn and told", () =>
  visit("compiler", {}, async (page, report) => {
    const live = report.series.map((moment) => moment.live_bytes);
    assert.ok(live.length > 2);
    const words = await page.textContent("#heap-words");
    assert.match(words, /live at first, at most .* at the end\.$/);
    // Something has been painted in the colour of the line.
    const painted = await page.$eval(".chart canvas", (canvas) => {
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      let coloured = 0;
      for (let at = 0; at < data.length; at += 4) if (data[at + 3] > 200 && data[at + 2] > data[at] + 60) coloured += 1;
      return coloured;
    });
    assert.ok(painted > 200, `${painted} pixels`);
    const sizes = await page.$$eval(".histogram >> nth=0 >> .count", (all) => all.map((one) => Number(one.textContent.replaceAll(",", ""))));
    assert.equal(sizes.reduce((sum, count) => sum + count, 0), report.heap.allocs);
  }));

test("many findings come in portions", () =>
  visit("compiler", {}, async (page, report) => {
    if (await page.isVisible('input[value="leak-reachable"]')) await page.check('input[value="leak-reachable"]');
    const all = report.records.length;
    assert.ok(all > 1000, `${all}`);
    assert.equal((await page.$$(".record")).length, 100);
    await page.click("text=Show more");
    assert.equal((await page.$$(".record")).length, 600);
  }));

test("hostile names are text", () =>
  visit("hostile", {}, async (page) => {
    await page.waitForSelector(".record");
    for (const button of await page.$$(".record .open")) await button.click();
    const text = await page.textContent("main");
    assert.ok(text.includes("</script><img src=x onerror=\"pwned=1\">"), "the name is shown as it is");
    assert.equal(await page.evaluate(() => window.pwned), undefined);
    assert.equal(await page.evaluate(() => document.querySelectorAll("img, iframe, object, svg script").length), 0);
    assert.equal(await page.evaluate(() => document.scripts.length), 2);
    assert.ok(!/[\u0000-\u0008\u001b\u202e]/.test(text));
  }));

test("the policy of the page runs no other script", () =>
  visit("orders", {}, async (page) => {
    const ran = await page.evaluate(() => new Promise((resolve) => {
      document.addEventListener("securitypolicyviolation", () => resolve("refused"));
      const script = document.createElement("script");
      script.textContent = "window.ran = true";
      document.body.append(script);
      if (window.ran) resolve("ran");
    }));
    assert.equal(ran, "refused");
  }).catch((error) => {
    // The refusal itself is logged as an error, which is what was asked for.
    if (!/Content Security Policy/.test(error.message)) throw error;
  }));
