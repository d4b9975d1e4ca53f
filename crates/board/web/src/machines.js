// All machines of a collector: a row for each, those first that need somebody.

import { grouped, h, settled } from "../../../report/web/src/dom.js";

import { amount, hours, moment } from "./amounts.js";
import { spark } from "./spark.js";

/** Not heard of for so many intervals, and at least so many seconds: silent. */
const SILENT_INTERVALS = 6;
const SILENT_SECONDS = 300;
/** Targets that a search names under their machine. */
const NAMED = 6;
const ORDER = { growing: 0, filling: 1 };

const isSilent = (one, now) => now - one.seen > Math.max(SILENT_SECONDS, SILENT_INTERVALS * (one.interval_seconds ?? 0));

/** Where a machine is, and a target of it. */
export const place = (machine, target) => `#/machine/${encodeURIComponent(machine)}${target === undefined ? "" : `/target/${encodeURIComponent(target)}`}`;

/** The list of all machines: what is shown, its search, and `update` with what the collector says. */
export function machineList(card) {
  const search = h("input", { type: "search", id: "search-machines", placeholder: "Machine or target", autocomplete: "off", "aria-label": "Search machines and targets" });
  const only = h("input", { type: "checkbox", id: "only-growing-machines" });
  const counted = h("output", { for: "search-machines only-growing-machines", "aria-live": "polite" });
  const cards = h("dl", { class: "cards" });
  const body = h("tbody");
  const shown = [
    cards,
    h("section", { id: "machines", "aria-labelledby": "machines-title" },
      h("h2", { id: "machines-title" }, "Machines"),
      h("div", { class: "bar" }, search, h("label", { class: "check" }, only, " growing alone"), counted),
      h("table", { class: "targets machines" },
        h("caption", { class: "hidden" }, "Machines, those on which something grows first"),
        h("thead", {}, h("tr", {}, ["Machine", "Last hours", "Most urgent", "Until its limit", "Targets", "Heard of"].map((name, at) => h("th", { scope: "col", class: at === 4 ? "number" : null }, name)))),
        body)),
  ];
  let machines = [];

  const growing = (one) => one.targets.filter(([, verdict]) => verdict === "growing").length;

  function row(one, wanted, now) {
    const { first } = one;
    const isNamed = (target) => wanted !== "" && target.toLowerCase().includes(wanted);
    const named = one.targets.map(([target]) => target).filter(isNamed);
    const link = (target) => h("a", { href: place(one.machine, target) }, target);
    return h("tr", { class: first?.verdict ?? "learning" },
      h("th", { scope: "row" }, h("a", { href: place(one.machine) }, one.machine),
        named.length > 0 && h("span", { class: "named" }, named.slice(0, NAMED).map(link), named.length > NAMED && `and ${grouped(named.length - NAMED)} more`)),
      h("td", { class: "line" }, first ? spark(first.spark, first.verdict, `Memory of ${first.id}: ${first.words}`) : ""),
      h("td", { class: "verdict" }, first
        ? [h("span", { class: `badge ${first.verdict}` }, first.verdict), " ", link(first.id), ` ${amount(first.memory)}`, first.words === first.verdict ? "" : `, ${first.words}`]
        : h("span", { class: "help" }, "it has sent no verdicts: its leakscope is older")),
      h("td", { class: "left" }, first?.hours_left === null || !first ? "" : hours(first.hours_left)),
      h("td", { class: "number count" }, grouped(one.targets.length), growing(one) > 0 && h("span", { class: "grew" }, ` (${grouped(growing(one))} growing)`)),
      h("td", { class: "heard" }, isSilent(one, now) ? [h("span", { class: "badge silent" }, "silent"), ` since ${moment(one.seen)}`] : new Date(one.seen * 1000).toLocaleTimeString("sv-SE")));
  }

  function update(list) {
    machines = list ?? machines;
    const now = Date.now() / 1000;
    const sum = (of) => machines.reduce((all, one) => all + of(one), 0);
    const silent = machines.filter((one) => isSilent(one, now)).length;
    const grow = machines.filter((one) => growing(one) > 0).length;
    const alarms = sum((one) => one.alarms);
    cards.replaceChildren(
      card("Machines", grouped(machines.length), `${grouped(sum((one) => one.targets.length))} targets`, "live"),
      card("Growing", grouped(sum(growing)), grow ? `on ${grouped(grow)} ${grow === 1 ? "machine" : "machines"}` : "nothing grows", grow ? "error" : "none"),
      card("Open alarms", grouped(alarms), "each is sent by its own machine", alarms ? "leak-possible" : "none"),
      card("Silent", grouped(silent), silent ? "not heard of lately" : "all are heard of", silent ? "error" : "none"));
    const wanted = search.value.trim().toLowerCase();
    const left = (one) => one.first?.hours_left ?? Infinity;
    const order = (one) => ORDER[one.first?.verdict] ?? 2;
    const rows = machines
      .filter((one) => (!only.checked || growing(one) > 0) && `${one.machine}\n${one.targets.map(([target]) => target).join("\n")}`.toLowerCase().includes(wanted))
      .sort((a, b) => order(a) - order(b) || (left(a) === left(b) ? 0 : left(a) - left(b)) || a.machine.localeCompare(b.machine));
    counted.textContent = rows.length === machines.length ? `${grouped(rows.length)} machines` : `${grouped(rows.length)} of ${grouped(machines.length)} machines`;
    // Whoever is on a row stays there.
    const at = body.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    body.replaceChildren(...rows.map((one) => row(one, wanted, now)));
    if (at) [...body.querySelectorAll("a")].find((one) => one.getAttribute("href") === at)?.focus();
  }

  search.addEventListener("input", settled(() => update()));
  only.addEventListener("change", () => update());
  return { shown, search, update, body };
}
