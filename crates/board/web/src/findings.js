// Alarms, and findings with their stacks.

import { grouped, h } from "../../../report/web/src/dom.js";

import { amount, moment } from "./amounts.js";

/** Frames, the first three of them at sight. */
export function stack(frames) {
  return h("details", {},
    h("summary", {}, frames.slice(0, 3).join(" < ") || "no stack"),
    h("ol", { class: "stack" }, frames.map((frame) => h("li", { class: "function" }, frame))));
}

function identity(fingerprint, since, isNew) {
  return h("span", { class: "identity" }, h("code", {}, fingerprint), " ",
    isNew ? h("span", { class: "badge new" }, "new") : h("span", { class: "badge" }, `since ${moment(since)}`));
}

/** An open alarm, with all that is known of it; `href` is where its target is. */
export function alarm(finding, href) {
  return h("article", { class: `alarm ${finding.urgent ? "urgent" : ""}` },
    h("h3", {}, h("a", { href }, finding.title)),
    h("p", { class: "help" }, `since ${moment(finding.since)}${finding.urgent ? ", urgent" : ""}`),
    finding.details.length > 0 && h("ul", { class: "lines" }, finding.details.map((line) => h("li", {}, line))),
    finding.evidence.map((one) => h("div", { class: "evidence" },
      h("p", {}, h("span", { class: "finder" }, one.source), " ", identity(one.fingerprint, one.known_since, one.known_since === null), " ", one.title),
      stack(one.stack))),
    h("p", { class: "next" }, "next: ", h("code", {}, finding.next)));
}

/** The findings of a history, those seen last first. */
export function found(list) {
  if (list.length === 0) return h("p", { class: "empty" }, "None. Programs started by `leakscope run` show their allocation sites here.");
  return h("table", { class: "found" },
    h("caption", { class: "hidden" }, "Findings, those seen last first"),
    h("thead", {}, h("tr", {}, ["Finding", "Bytes", "Blocks", "Seen"].map((words, at) => h("th", { scope: "col", class: at === 1 || at === 2 ? "number" : null }, words)))),
    h("tbody", {}, list.map((one) => h("tr", {},
      h("td", { class: "site" }, h("span", { class: "finder" }, one.source), " ", h("code", {}, one.fingerprint), stack(one.stack)),
      h("td", { class: "number", "data-label": "bytes" }, amount(one.bytes)),
      h("td", { class: "number", "data-label": "blocks" }, grouped(one.blocks)),
      h("td", { class: "seen" }, `${moment(one.first)} \u2013 ${moment(one.last)}`)))));
}
