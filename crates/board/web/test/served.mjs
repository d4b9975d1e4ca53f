// The page that crates/board/tests/page.rs serves, with LEAKSCOPE_PAGE as its address; LEAKSCOPE_SHOTS is a folder for
// screenshots, LEAKSCOPE_HOSTILE a name that must stay text.

import assert from "node:assert/strict";
import { after, before } from "node:test";

import { launch, visit as inBrowser } from "../../../report/web/test/browser.mjs";

export const address = process.env.LEAKSCOPE_PAGE;
export const shots = process.env.LEAKSCOPE_SHOTS;
export const hostile = process.env.LEAKSCOPE_HOSTILE;
assert.ok(address && shots && hostile, "run `cargo test -p leakscope-board --test page`");

let browser;

before(async () => { browser = await launch(); });

after(async () => browser?.close());

/** Opens the page and hands it over; fails where a name became more than text. */
export function visit(path, options, look) {
  const allows = (request) => request.url().startsWith(address) && request.method() === "GET";
  return inBrowser(browser, address + path, allows, options, async (page) => {
    await look(page);
    assert.equal(await page.evaluate(() => window.pwned), undefined, "a name ran as a program");
    assert.equal(await page.$$eval("img, iframe, object, form", (all) => all.length), 0);
  });
}

export const shown = (page, what) => page.waitForSelector(`main[data-shown=${JSON.stringify(what)}]`);
