// What a target's memory is made of, and which part has grown in the time that is shown.

import { h } from "../../../report/web/src/dom.js";

import { amount, moment } from "./amounts.js";

const PARTS = [
  ["heap", "Heap", "what grows by brk: malloc's main arena"],
  ["arenas", "Thread arenas", "malloc's arenas of other threads, in regions of 64 MiB"],
  ["other_anonymous", "Other anonymous", "large blocks, other allocators, stacks"],
  ["files", "Mapped files", "programs, libraries and other files"],
  ["shared", "Shared memory", "/dev/shm, memfds, shared mappings"],
];

/** A table out of a series; null when nothing of it has been read in this time. */
export function parts(series) {
  const { values, at } = series;
  const known = (values.heap ?? []).map((value, index) => (value === null ? -1 : index)).filter((index) => index >= 0);
  if (known.length === 0) return null;
  const [first, last] = [known[0], known[known.length - 1]];
  const most = Math.max(1, ...PARTS.map(([name]) => values[name]?.[last] ?? 0));
  const rows = PARTS.map(([name, words, what]) => {
    const now = values[name]?.[last] ?? 0;
    const change = now - (values[name]?.[first] ?? 0);
    const bar = h("span", { class: "amount" });
    // A style attribute would be against the page's policy; a property is not.
    bar.style.inlineSize = `${((100 * now) / most).toFixed(2)}%`;
    const arenas = name === "arenas" && now > 0 ? ` in ${values.arena_count?.[last] ?? "?"} regions` : "";
    return h("tr", {},
      h("th", { scope: "row", title: what }, words),
      h("td", {}, bar, h("span", { class: "count" }, `${amount(now)}${arenas}`,
        first !== last && change !== 0 && h("span", { class: change > 0 ? "grew" : "shrank" }, ` ${change > 0 ? "+" : ""}${amount(change)}`))));
  });
  const span = first === last ? `at ${moment(at[last])}` : `at ${moment(at[last])}, and the change since ${moment(at[first])}`;
  return h("div", { class: "histogram parts" },
    h("p", { class: "help" }, `Resident or on swap ${span}.`),
    h("table", {}, h("caption", { class: "hidden" }, "Parts of memory"), h("tbody", {}, rows)));
}
