// What a person does with the monitor's page, in a real browser: clicked, typed and read.
//
// crates/board/tests/page.rs serves it, with LEAKSCOPE_PAGE as its address; LEAKSCOPE_SHOTS is a folder for screenshots.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { after, before, test } from "node:test";

const { chromium } = createRequire(new URL("../../../report/web/package.json", import.meta.url))("playwright-core");
const address = process.env.LEAKSCOPE_PAGE;
const shots = process.env.LEAKSCOPE_SHOTS;
const hostile = process.env.LEAKSCOPE_HOSTILE;
assert.ok(address && shots && hostile, "run `cargo test -p leakscope-board --test page`");

let browser;

before(async () => {
  browser = await chromium.launch({
    executablePath: process.env.LEAKSCOPE_CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"],
  });
});

after(async () => browser?.close());

/** Opens the page, hands it over, and fails where it logged an error or asked for anything but itself. */
async function visit(path, options, look) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, reducedMotion: "reduce", ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(15000);
  const wrong = [];
  page.on("console", (message) => message.type() === "error" && wrong.push(message.text()));
  page.on("pageerror", (error) => wrong.push(error.message));
  page.on("dialog", (dialog) => { wrong.push(`dialog: ${dialog.message()}`); dialog.dismiss(); });
  page.on("request", (request) => {
    if (!request.url().startsWith(address)) wrong.push(`request: ${request.url()}`);
    if (request.method() !== "GET") wrong.push(`${request.method()} ${request.url()}`);
  });
  await page.goto(address + path);
  await page.waitForSelector("#page[data-ready]");
  await look(page);
  assert.equal(await page.evaluate(() => window.pwned), undefined, "a name ran as a program");
  assert.equal(await page.$$eval("img, iframe, object, form", (all) => all.length), 0);
  assert.deepEqual(wrong, []);
  await context.close();
}

const board = async () => (await fetch(`${address}api/board`)).json();
const rows = (page) => page.$$eval(".targets tbody tr th", (all) => all.map((one) => one.textContent));
const shown = (page, what) => page.waitForSelector(`main[data-shown=${JSON.stringify(what)}]`);

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
  const findings = await page.textContent(".found");
  assert.match(findings, /ledger 0123456789abcdef.*1\.1 GB/s);
  await page.click(".found summary >> nth=0");
  assert.match(await page.textContent(".found details[open] .stack"), /load_page \(cache\.c:12\)serve/);
  await page.check('input[name="range"][value="7200"]', { force: true });
  await page.waitForFunction(() => /Nothing happened/.test(document.querySelector("main").textContent));
  assert.equal(await page.$$eval(".found details[open]", (all) => all.length), 1, "what was opened stays open");
  await page.keyboard.press("Escape");
  await shown(page, "all");
  await page.goBack();
  await shown(page, "name:shop");
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
      assert.ok(await fits(), "nothing is wider than the screen");
      await page.screenshot({ path: `${shots}/target-${width}-${colorScheme}.png`, fullPage: true });
    }));
  }
}
