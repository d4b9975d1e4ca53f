// Where a target's memory goes, at one moment or beside an earlier one: the report's flame graph, and what has changed.

import { grouped, h } from "../../../report/web/src/dom.js";
import { flame } from "../../../report/web/src/flame.js";
import { Model } from "../../../report/web/src/model.js";

import { amount, moment } from "./amounts.js";
import { stack } from "./findings.js";

const SOURCES = {
  "ledger": ["Live bytes", "Bytes that were live, by allocation site"],
  "leak check": ["Lost bytes", "Bytes that were definitely lost"],
  "kmemleak": ["kmemleak", "Bytes that nothing in the kernel pointed to"],
  "kernel trace": ["Kernel trace", "Bytes that were allocated while the kernel was traced, and not freed"],
};
/** Sites of the table of changes. */
const MOST = 50;
const NOTHING = { nodes: { up: [0], frame: [0] }, texts: [""], frames: { name: [], file: [], line: [], module: [] }, sites: { process: [], node: [], live: [] }, sources: [], records: [] };

function metrics(source, compared) {
  const [words, what] = SOURCES[source] ?? [source, source];
  const now = { id: "live", words, unit: "bytes", what };
  if (!compared) return [now];
  return [
    { ...now, words: "Later", what: `${what}; red is more than at the earlier time, blue is less` },
    { id: "grown", words: "More", unit: "bytes", what: "What has become more since the earlier time" },
    { id: "shrunk", words: "Less", unit: "bytes", what: "What has become less since the earlier time" },
  ];
}

/** `ask` reads a path of the daemon. What is shown last is said in the section's `data-shown`. */
export function profiles(ask) {
  const graph = flame(new Model(NOTHING), () => null, { metrics: metrics("ledger", false), inBytes: amount });
  const { section } = graph;
  const source = h("select", { id: "profile-source", onchange: () => moments() });
  const at = h("select", { id: "profile-at", onchange: () => read() });
  const before = h("select", { id: "profile-before", onchange: () => read() });
  const table = h("div", { class: "changes" });
  const field = (words, select) => h("label", { class: "field" }, h("span", {}, words), select);
  section.querySelector("h2").after(h("div", { class: "bar times" }, field("Of", source), field("At", at), field("Compared with", before)));
  section.append(table);
  let [target, sources, since, shown, number] = [null, {}, null, "", 0];

  const option = (value, words, chosen) => h("option", { value, selected: value === chosen }, words);
  const times = () => sources[source.value] ?? [];

  /** The moments of the chosen source; what was chosen stays, if it is still there. */
  function moments() {
    const [list, chosen, earlier] = [times(), at.value, before.value];
    const newest = list[list.length - 1];
    // Of what grows: how it was before that began.
    const start = String((since && list.findLast((one) => one <= since && one < newest)) || "");
    const isKnown = (value) => value === "" || list.includes(Number(value));
    const falling = [...list].reverse();
    at.replaceChildren(option("", newest ? `${moment(newest)}, the newest` : "", ""), ...falling.slice(1).map((one) => option(String(one), moment(one), chosen)));
    if (!isKnown(chosen)) at.value = "";
    before.replaceChildren(option("", "nothing", ""), ...falling.map((one) => option(String(one), moment(one), "")));
    before.value = before.dataset.of === `${target} ${source.value}` && isKnown(earlier) ? earlier : start;
    before.dataset.of = `${target} ${source.value}`;
    return read();
  }

  async function read() {
    const list = times();
    const wanted = at.value === "" ? list[list.length - 1] : Number(at.value);
    const asked = [target, source.value, wanted, before.value].join("\n");
    if (wanted === undefined || asked === shown) return;
    const mine = (number += 1);
    const query = new URLSearchParams({ target, source: source.value, at: wanted });
    if (before.value !== "") query.set("before", before.value);
    const found = await ask(`/api/profile?${query}`);
    // A later question has its own answer.
    if (mine !== number) return;
    shown = asked;
    graph.show(new Model(found), metrics(source.value, found.before !== null));
    table.replaceChildren(...(found.before === null ? [] : changes(found)));
    section.dataset.shown = [source.value, wanted, before.value].join(" ");
  }

  /** Shows a target. `from` is when it began to grow, if it does. */
  async function open(wanted, from) {
    const found = await ask(`/api/profiles?target=${encodeURIComponent(wanted)}`);
    const names = Object.keys(found.sources);
    const isOther = wanted !== target;
    const isSame = !isOther && JSON.stringify(found.sources) === JSON.stringify(sources);
    [target, sources, since] = [wanted, found.sources, from];
    section.hidden = names.length === 0;
    // Whoever is at the graph is not disturbed by a newer profile.
    if (section.hidden || isSame || (!isOther && section.contains(document.activeElement))) return;
    const chosen = isOther ? (names.includes("ledger") ? "ledger" : names[0]) : source.value;
    if (isOther) [at, before].forEach((select) => select.replaceChildren());
    source.replaceChildren(...names.map((name) => option(name, SOURCES[name]?.[0] ?? name, chosen)));
    source.closest("label").hidden = names.length < 2;
    await moments();
  }

  function close() {
    section.hidden = true;
    [target, shown] = [null, ""];
    number += 1;
  }

  return { section, open, close, search: graph.search };
}

/** Each site at the two moments, the largest change first. */
function changes(found) {
  const changed = found.list.filter((one) => one.bytes !== one.before);
  changed.sort((a, b) => Math.abs(b.bytes - b.before) - Math.abs(a.bytes - a.before));
  if (changed.length === 0) return [h("p", { class: "empty" }, `Nothing has changed between ${moment(found.before)} and ${moment(found.at)}.`)];
  const row = (one) => {
    const change = one.bytes - one.before;
    const word = one.blocks_before === null ? "new" : one.blocks === null ? "gone" : null;
    return h("tr", {},
      h("td", { class: "site" }, h("code", {}, one.fingerprint), " ", word && h("span", { class: `badge ${word}` }, word), stack(one.stack)),
      h("td", { class: "number", "data-label": "before" }, amount(one.before)),
      h("td", { class: "number", "data-label": "later" }, amount(one.bytes)),
      h("td", { class: `number ${change > 0 ? "grew" : "shrank"}`, "data-label": "change" }, `${change > 0 ? "+" : ""}${amount(change)}`));
  };
  return [
    h("h3", {}, `What has changed from ${moment(found.before)} to ${moment(found.at)}`),
    h("table", { class: "found" },
      h("caption", { class: "hidden" }, "Sites, the largest change first"),
      h("thead", {}, h("tr", {}, ["Site", "Before", "Later", "Change"].map((words, column) => h("th", { scope: "col", class: column ? "number" : null }, words)))),
      h("tbody", {}, changed.slice(0, MOST).map(row))),
    changed.length > MOST && h("p", { class: "help" }, `and ${grouped(changed.length - MOST)} smaller changes`),
  ].filter(Boolean);
}
