// What the browser tests of the pages have in common: a browser, and a visit that fails where the page complains.

import assert from "node:assert/strict";
import { chromium } from "playwright-core";

/** The browser that is installed. */
export function launch() {
  return chromium.launch({
    executablePath: process.env.LEAKSCOPE_CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"],
  });
}

/**
 * Opens an address, hands the page over once it is ready, and fails where it logged an error, opened a dialog or made a
 * request that `allows` does not allow.
 */
export async function visit(browser, address, allows, options, look) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, reducedMotion: "reduce", ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(15000);
  const wrong = [];
  page.on("console", (message) => message.type() === "error" && wrong.push(message.text()));
  page.on("pageerror", (error) => wrong.push(error.message));
  page.on("dialog", (dialog) => { wrong.push(`dialog: ${dialog.message()}`); dialog.dismiss(); });
  page.on("request", (request) => allows(request) || wrong.push(`request: ${request.method()} ${request.url()}`));
  await page.goto(address);
  await page.waitForSelector("#page[data-ready]");
  await look(page);
  assert.deepEqual(wrong, []);
  await context.close();
}

/** Waits until rectangles have grown: to their widths in a quarter of a second, and to others once there is a scroll bar. */
export function flameIsDrawn(page) {
  return page.waitForFunction(() => {
    const place = document.querySelector(".flame");
    const svg = place?.querySelector("svg");
    const width = (element) => Number(element?.getAttribute("width"));
    return !svg || width(svg) === Math.max(place.clientWidth, 280) && width(svg.querySelector("rect")) === width(svg);
  });
}
