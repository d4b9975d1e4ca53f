// What a person does with the page of a collector, in a real browser: from all machines to one target and back.

import assert from "node:assert/strict";
import { test } from "node:test";

import { address, hostile, shots, shown, visit } from "./served.mjs";

const names = (page) => page.$$eval(".machines tbody th > a", (all) => all.map((one) => one.textContent));

test("all machines, those that need somebody first", () => visit("", {}, async (page) => {
  await shown(page, "machines");
  assert.deepEqual(await names(page), ["web-1", "db-1", "old-1"]);
  const rows = await page.$$eval(".machines tbody tr", (all) => all.map((one) => one.textContent));
  assert.match(rows[0], /growing name:shop 1\.4 GB, memory grows by 60 MB\/h.*4\.6 days.*20 \(1 growing\)/);
  assert.match(rows[1], /stable unit:postgresql\.service 2\.2 GB/);
  assert.match(rows[2], /has sent no verdicts.*silent since/);
  const cards = await page.textContent(".cards");
  assert.match(cards, /Machines3.*Growing1on 1 machine.*Open alarms1.*Silent1/);
  assert.equal(await page.$$eval(".machines .spark polyline", (all) => all.length), 2);
  assert.equal(await page.$$eval('a[href="/metrics"]', (all) => all.length), 0);
}));

test("a search names machines, and targets under them", () => visit("", {}, async (page) => {
  await shown(page, "machines");
  await page.keyboard.press("/");
  await page.keyboard.type("worker-1");
  // While it is typed six others are named.
  await page.waitForFunction(() => document.querySelectorAll(".named a").length === 5);
  assert.match(await page.textContent("output"), /1 of 3 machines/);
  assert.deepEqual(await page.$$eval(".named a", (all) => all.map((one) => one.textContent)), ["name:worker-1", "name:worker-10", "name:worker-11", "name:worker-12", "name:worker-13"]);
  await page.keyboard.press("Escape");
  await page.waitForFunction(() => document.querySelectorAll(".machines tbody tr").length === 3);
  await page.check("#only-growing-machines");
  await page.waitForFunction(() => document.querySelectorAll(".machines tbody tr").length === 1);
  assert.deepEqual(await names(page), ["web-1"]);
  await page.uncheck("#only-growing-machines");
  await page.fill("#search-machines", "onerror");
  await page.waitForFunction(() => document.querySelectorAll(".named a").length === 1);
  assert.equal(await page.textContent(".named a"), hostile);
  await page.click(".named a");
  await shown(page, hostile);
  assert.equal(await page.textContent("#target-title"), hostile);
}));

test("from all machines to a target and back, by keyboard and by the browser", () => visit("", {}, async (page) => {
  await shown(page, "machines");
  await page.click('.machines a:has-text("web-1")');
  await shown(page, "all");
  assert.equal(await page.textContent("h1"), "web-1");
  assert.match(await page.textContent("header .status"), /pass 8,640 at \d{4}-\d\d-\d\d /, "a day, because it may be long ago");
  assert.equal(await page.$$eval(".targets tbody tr", (all) => all.length), 20);
  assert.match(await page.getAttribute("article.alarm h3 a", "href"), /^#\/machine\/web-1\/target\/name%3Ashop$/);
  await page.click('.targets a:has-text("name:shop")');
  await shown(page, "name:shop");
  assert.match(await page.textContent("#chart-words"), /at first, at most .* now\./);
  assert.match(await page.textContent("section[aria-labelledby=\"found-title\"]"), /ledger 0123456789abcdef/);
  await page.waitForSelector("#flame[data-shown]");
  assert.match(page.url(), /#\/machine\/web-1\/target\/name%3Ashop$/);
  await page.keyboard.press("Escape");
  await shown(page, "all");
  await page.keyboard.press("Escape");
  await shown(page, "machines");
  await page.click('.machines tbody th a:has-text("db-1")');
  await shown(page, "all");
  // Nothing of the other machine is left.
  assert.equal(await page.textContent("h1"), "db-1");
  assert.equal(await page.$$eval(".targets tbody tr", (all) => all.length), 3);
  assert.equal(await page.isVisible("#alarms"), false);
  await page.goBack();
  await shown(page, "machines");
  await page.goForward();
  await shown(page, "all");
  await page.click(".back");
  await shown(page, "machines");
}));

test("a machine that has sent nothing is said", () => visit("", {}, async (page) => {
  await shown(page, "machines");
  await page.goto(`${address}#/machine/old-1`);
  await page.waitForSelector(".trouble:not([hidden])");
  assert.match(await page.textContent(".trouble"), /404/);
  await page.keyboard.press("Escape");
  await shown(page, "machines");
  await page.waitForSelector(".trouble", { state: "hidden" });
}).catch((error) => {
  // The browser itself reports the answer.
  if (!/status of 404/.test(error.message)) throw error;
}));

for (const [width, height] of [[1280, 900], [400, 850]]) {
  for (const colorScheme of ["light", "dark"]) {
    test(`screenshots at ${width} pixels, ${colorScheme}`, () => visit("", { viewport: { width, height }, colorScheme }, async (page) => {
      const fits = () => page.evaluate(() => document.documentElement.scrollWidth <= innerWidth);
      await shown(page, "machines");
      assert.ok(await fits(), "nothing is wider than the screen");
      await page.screenshot({ path: `${shots}/machines-${width}-${colorScheme}.png`, fullPage: true });
      await page.goto(`${address}#/machine/web-1`);
      await shown(page, "all");
      assert.ok(await fits(), "nothing is wider than the screen");
      await page.screenshot({ path: `${shots}/machine-${width}-${colorScheme}.png`, fullPage: true });
    }));
  }
}
