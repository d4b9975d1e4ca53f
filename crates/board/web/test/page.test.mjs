// What a person does with the monitor's page, in a real browser: clicked, typed and read.

import assert from "node:assert/strict";
import { test } from "node:test";

import { flameIsDrawn } from "../../../report/web/test/browser.mjs";
import { address, hostile, shots, shown, visit } from "./served.mjs";

/** The findings; the changes beside the flame graph are such a table too. */
const FOUND = "section[aria-labelledby=\"found-title\"] .found";

const board = async () => (await fetch(`${address}api/board`)).json();
const rows = (page) => page.$$eval(".targets tbody tr th", (all) => all.map((one) => one.textContent));

test("targets are those of the board, those that grow first", () => visit("", {}, async (page) => {
  const { targets, machine } = await board();
  const found = await rows(page);
  assert.deepEqual([...found].sort(), targets.map((one) => one.id).sort());
  assert.equal(found[0], "name:shop");
  assert.equal(await page.textContent("h1"), machine);
  const first = await page.textContent(".targets tbody tr >> nth=0");
  assert.match(first, /1\.4 GB.*growing.*memory grows by 60 MB\/h.*4\.6 days/s);
  assert.match(await page.textContent("#alarms"), /0123456789abcdef.*new/s);
  assert.equal(await page.$$eval(".spark polyline", (all) => all.length), targets.length);
}));

test("search and filter", () => visit("", {}, async (page) => {
  await page.keyboard.press("/");
  await page.keyboard.type("worker-1");
  await page.waitForFunction(() => document.querySelectorAll(".targets tbody tr").length === 5);
  assert.match(await page.textContent("output"), /5 of 20 targets/);
  await page.keyboard.press("Escape");
  await page.waitForFunction(() => document.querySelectorAll(".targets tbody tr").length === 20);
  await page.check("#only-growing");
  assert.deepEqual(await rows(page), ["name:shop"]);
}));

test("values change without a reload, and the place of the keyboard stays", () => visit("", {}, async (page) => {
  await page.focus('.targets a:has-text("kernel:slab")');
  const passes = () => page.textContent("header .status");
  const before = await passes();
  await page.waitForFunction((before) => document.querySelector("header .status").textContent !== before, before);
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "kernel:slab");
}));

test("a target: its series, events and findings with stacks", () => visit("", {}, async (page) => {
  const before = (await page.$$eval("a", (all) => all.length));
  assert.ok(before > 20);
  await page.click('.targets a:has-text("name:shop")');
  await shown(page, "name:shop");
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "name:shop");
  assert.match(await page.title(), /name:shop/);
  assert.match(await page.textContent("#chart-words"), /at first, at most .* now\./);
  assert.equal(await page.$$eval(".chart canvas", (all) => all.length), 1);
  assert.match(await page.textContent(".events"), /alarm.*onerror/s);
  const findings = await page.textContent(FOUND);
  assert.match(findings, /ledger 0123456789abcdef.*1\.1 GB/s);
  await page.click(`${FOUND} summary >> nth=0`);
  assert.match(await page.textContent(`${FOUND} details[open] .stack`), /load_page \(cache\.c:12\)serve/);
  await page.check('input[name="range"][value="7200"]', { force: true });
  await page.waitForFunction(() => /Nothing happened/.test(document.querySelector("main").textContent));
  assert.equal(await page.$$eval(`${FOUND} details[open]`, (all) => all.length), 1, "what was opened stays open");
  await page.keyboard.press("Escape");
  await shown(page, "all");
  await page.goBack();
  await shown(page, "name:shop");
}));

const profiled = (page) => page.waitForSelector("#flame[data-shown]");
const frames = (page) => page.$$eval(".flame g.frame", (all) => all.map((one) => one.getAttribute("aria-label")));

/** Waits until the flame graph is drawn that `choose` leads to. */
async function reads(page, choose) {
  const before = await page.getAttribute("#flame", "data-shown");
  await choose();
  await page.waitForFunction((before) => document.querySelector("#flame").dataset.shown !== before, before);
  await flameIsDrawn(page);
}

test("a target's flame graph beside an earlier time", () => visit("#/target/name%3Ashop", {}, async (page) => {
  await profiled(page);
  await flameIsDrawn(page);
  // It grows: so it is compared with how it was before that began. The oracle is what the daemon answers.
  const { sources } = await (await fetch(`${address}api/profiles?target=name:shop`)).json();
  const [first, middle, last] = sources.ledger;
  const { since } = (await board()).targets.find((one) => one.id === "name:shop");
  assert.ok(first <= since && middle > since);
  assert.equal(await page.getAttribute("#flame", "data-shown"), `ledger ${last} ${first}`);
  const { list } = await (await fetch(`${address}api/profile?target=name:shop&source=ledger&at=${last}&before=${first}`)).json();
  const site = (fingerprint) => list.find((one) => one.fingerprint === fingerprint);
  const grown = site("0123456789abcdef");
  assert.ok(grown.bytes > grown.before);
  const sum = (of) => list.reduce((sum, one) => sum + of(one), 0);
  const grouped = (number) => new Intl.NumberFormat("en-US").format(number);
  const label = async (name) => (await frames(page)).find((words) => words.startsWith(`${name}:`));
  assert.match(await label("all"), new RegExp(`\\(${grouped(sum((one) => one.bytes))} bytes\\), 100\\.0 %, .* more than before`));
  assert.match(await label("load_page"), new RegExp(`\\(${grouped(grown.bytes)} bytes\\).* more than before, in cache\\.c`));
  assert.match(await label("index_words"), /as much as before/);
  assert.equal(await label("warm_up"), undefined, "what is gone has no width");
  const colour = (name) => page.getAttribute(`.flame g.frame[aria-label^="${name}:"] rect`, "fill");
  assert.match(await colour("load_page"), /^hsl\(4 /);
  assert.match(await colour("index_words"), /^hsl\(0 0%/);
  const rows = await page.$$eval(".changes tbody tr", (all) => all.map((one) => one.textContent));
  assert.deepEqual(rows.map((row) => row.slice(0, 16)), ["0123456789abcdef", "00000000000000dd", "00000000000000ee"]);
  assert.match(rows[0], /load_page.*\+/);
  assert.match(rows[1], /gone.*warm_up.*-/);
  assert.match(rows[2], /new.*script>pwned/);
  // What has become more, and less, alone.
  await page.check('input[name="metric"][value="grown"]', { force: true });
  await page.waitForFunction(() => !document.querySelector('.flame g.frame[aria-label^="index_words:"]'));
  assert.match(await label("all"), new RegExp(`\\(${grouped(sum((one) => Math.max(one.bytes - one.before, 0)))} bytes\\)`));
  await page.check('input[name="metric"][value="shrunk"]', { force: true });
  await page.waitForFunction(() => document.querySelector('.flame g.frame[aria-label^="warm_up:"]'));
  // Without a comparison there is no change to be seen.
  await reads(page, () => page.selectOption("#profile-before", ""));
  assert.match(await label("load_page"), new RegExp(`\\(${grouped(grown.bytes)} bytes\\), [0-9.]+ %, in cache\\.c`));
  assert.equal(await page.$$eval(".changes tbody tr", (all) => all.length), 0);
  assert.equal(await page.isVisible(".choice >> text=More"), false);
  await reads(page, () => page.selectOption("#profile-at", String(middle)));
  assert.equal(await page.getAttribute("#flame", "data-shown"), `ledger ${middle} `);
  await reads(page, () => page.selectOption("#profile-source", "leak check"));
  assert.match(await label("all"), /^all: 12 MB \(12,000,000 bytes\)/);
}));

test("the flame graph is searched and zoomed by the keyboard, and what is chosen outlives a pass", () => visit("#/target/name%3Ashop", {}, async (page) => {
  await profiled(page);
  await flameIsDrawn(page);
  await page.keyboard.press("f");
  await page.keyboard.type("load_page");
  await page.waitForFunction(() => /^1 frames/.test(document.querySelector("#flame-found").textContent));
  await page.focus('.flame g[tabindex="0"]');
  await page.keyboard.press("ArrowDown");
  await page.keyboard.press("Enter");
  assert.match(await page.evaluate(() => document.activeElement.getAttribute("aria-label")), /^main:/);
  await page.keyboard.press("Escape");
  assert.match(await page.evaluate(() => document.activeElement.getAttribute("aria-label")), /^all:/);
  assert.match(page.url(), /target/, "Escape went back from the zoom, not from the target");
  const passes = () => page.textContent("header .status");
  await reads(page, () => page.selectOption("#profile-before", ""));
  const before = await passes();
  await page.waitForFunction((before) => document.querySelector("header .status").textContent !== before, before);
  assert.equal(await page.inputValue("#profile-before"), "");
  await page.focus("#target-title");
  await page.keyboard.press("Escape");
  await shown(page, "all");
}));

test("what memory is made of", () => visit("#/target/name%3Ashop", {}, async (page) => {
  await shown(page, "name:shop");
  const { values } = await (await fetch(`${address}api/series?target=name:shop&seconds=86400`)).json();
  assert.ok(values.heap.some((value) => value === null) && values.heap.some((value) => value > 0));
  const rows = await page.$$eval("#parts tbody tr", (all) => all.map((one) => one.textContent));
  assert.match(rows[0], /^Heap.* [kMG]B.*\+/);
  assert.match(rows[1], /^Thread arenas.* in 3 regions/);
  assert.equal(rows.length, 5);
  const widths = await page.$$eval("#parts .amount", (all) => all.map((one) => one.getBoundingClientRect().width));
  assert.ok(widths[0] > 3 * widths[1], widths);
  // The hostile one was only glanced at.
  await page.goto(`${address}#/target/${encodeURIComponent(hostile)}`);
  await shown(page, hostile);
  assert.equal(await page.isVisible("#parts"), false);
  assert.equal(await page.isVisible("#flame"), false);
}));

test("hostile names are text everywhere", () => visit(`#/target/${encodeURIComponent(hostile)}`, {}, async (page) => {
  await shown(page, hostile);
  assert.equal(await page.textContent("#target-title"), hostile);
  await page.goto(`${address}#/target/%E0%A4%A`);
  await shown(page, "all");
  assert.ok((await rows(page)).includes(hostile));
}));

test("a daemon that is gone is said, and what is known stays", () => visit("", {}, async (page) => {
  await page.route("**/api/board", (route) => route.fulfill({ status: 500, body: "" }));
  await page.waitForSelector(".trouble:not([hidden])");
  assert.match(await page.textContent(".trouble"), /does not answer.*500/);
  assert.equal((await rows(page)).length, 20);
  await page.unroute("**/api/board");
  await page.waitForSelector(".trouble", { state: "hidden" });
}).catch((error) => {
  // The browser itself reports the answer that this test has made up.
  if (!/status of 500/.test(error.message)) throw error;
}));

for (const [width, height] of [[1280, 900], [400, 850]]) {
  for (const colorScheme of ["light", "dark"]) {
    test(`screenshots at ${width} pixels, ${colorScheme}`, () => visit("", { viewport: { width, height }, colorScheme }, async (page) => {
      const fits = () => page.evaluate(() => document.documentElement.scrollWidth <= innerWidth);
      assert.ok(await fits(), "nothing is wider than the screen");
      await page.screenshot({ path: `${shots}/all-${width}-${colorScheme}.png`, fullPage: true });
      await page.goto(`${address}#/target/name%3Ashop`);
      await shown(page, "name:shop");
      await profiled(page);
      await flameIsDrawn(page);
      assert.ok(await fits(), "nothing is wider than the screen");
      await page.screenshot({ path: `${shots}/target-${width}-${colorScheme}.png`, fullPage: true });
    }));
  }
}
