// The page of `leakscope monitor`: targets, one target, open alarms; of a collector, all machines first. It asks for what is
// new and shows it; there is nothing on it that changes anything.

import "../../../report/web/src/style.css";
import "./board.css";

import { grouped, h, settled } from "../../../report/web/src/dom.js";

import { amount, hours, moment } from "./amounts.js";
import { draw, words } from "./chart.js";
import { alarm, found } from "./findings.js";
import { machineList, place } from "./machines.js";
import { parts } from "./parts.js";
import { profiles } from "./profile.js";
import { spark } from "./spark.js";

const RANGES = [["2 hours", 7200], ["1 day", 86400], ["7 days", 604800], ["30 days", 2592000], ["1 year", 31536000]];
/** How urgent a verdict is, for the order of the table. */
const ORDER = { growing: 0, filling: 1, learning: 2, stable: 3 };
const RETRY_MS = 10000;

/** Whether this is a collector's page, and which of its machines is shown. */
const isMany = document.documentElement.dataset.many !== undefined;
let machine = null;
let board = null;
let tag = null;
let range = 86400;

/** An address, of the machine that is shown. */
const address = (path) => machine === null ? path : `${path}${path.includes("?") ? "&" : "?"}machine=${encodeURIComponent(machine)}`;
/** Where a target is on this page; without one, all of them. */
const here = (target) => machine === null ? `#/${target === undefined ? "" : `target/${encodeURIComponent(target)}`}` : place(machine, target);

async function ask(path) {
  const answer = await fetch(address(path), { cache: "no-store" });
  if (!answer.ok) throw new Error(`${answer.status} ${(await answer.text()).trim()}`);
  return answer.json();
}

function themeButton(changed) {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const current = () => document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");
  const button = h("button", { type: "button", class: "theme", onclick: () => {
    document.documentElement.dataset.theme = current() === "dark" ? "light" : "dark";
    label();
    changed();
  } });
  function label() {
    button.textContent = current() === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-label", `Use ${current() === "dark" ? "light" : "dark"} colours`);
  }
  dark.addEventListener("change", () => { label(); changed(); });
  label();
  return button;
}

const title = h("h1", {}, "leakscope monitor");
const status = h("p", { class: "status", role: "status", "aria-live": "off" }, "waiting for the first pass");
const trouble = h("p", { class: "trouble", role: "alert", hidden: true });
const main = h("main", { id: "main", tabindex: "-1" });

// ---- all targets

const search = h("input", { type: "search", id: "search", placeholder: "Target", autocomplete: "off", "aria-label": "Search targets" });
const only = h("input", { type: "checkbox", id: "only-growing" });
const counted = h("output", { for: "search only-growing", "aria-live": "polite" });
const cards = h("dl", { class: "cards" });
const alarms = h("section", { id: "alarms", "aria-labelledby": "alarms-title" });
const body = h("tbody");
const overview = [
  isMany && h("p", {}, h("a", { href: "#/", class: "back" }, "\u2190 All machines")),
  cards,
  alarms,
  h("section", { id: "targets", "aria-labelledby": "targets-title" },
    h("h2", { id: "targets-title" }, "Targets"),
    h("div", { class: "bar" }, search, h("label", { class: "check" }, only, " growing alone"), counted),
    h("table", { class: "targets" },
      h("caption", { class: "hidden" }, "Targets, those that grow first"),
      h("thead", {}, h("tr", {}, ["Target", "Last hours", "Memory", "Verdict", "Until its limit"].map((name, at) => h("th", { scope: "col", class: at === 2 ? "number" : null }, name)))),
      body)),
].filter(Boolean);
search.addEventListener("input", settled(() => update()));
only.addEventListener("change", () => update());

function card(name, value, note, kind) {
  return h("div", { class: `card ${kind}` }, h("dt", {}, name), h("dd", {}, h("strong", {}, value), h("span", {}, note)));
}

function row(target) {
  const left = target.hours_left === null ? "" : hours(target.hours_left);
  return h("tr", { class: target.verdict },
    h("th", { scope: "row" }, h("a", { href: here(target.id) }, target.id)),
    h("td", { class: "line" }, spark(target.spark, target.verdict, `Memory of ${target.id}: ${target.words}`)),
    h("td", { class: "number memory" }, amount(target.memory)),
    h("td", { class: "verdict" }, h("span", { class: `badge ${target.verdict}` }, target.verdict), " ", target.words === target.verdict ? "" : target.words),
    h("td", { class: "left" }, left, left && target.limit_of ? h("span", { class: "help" }, ` until ${target.limit_of}`) : ""));
}

function update() {
  const growing = board.targets.filter((target) => target.verdict === "growing").length;
  cards.replaceChildren(
    card("Targets", grouped(board.targets.length), `every ${board.interval_seconds} s`, "live"),
    card("Growing", grouped(growing), growing ? "without an end in sight" : "nothing grows", growing ? "error" : "none"),
    card("Open alarms", grouped(board.alarms.length), board.undelivered ? `${grouped(board.undelivered)} notices wait` : "all are delivered", board.alarms.length ? "leak-possible" : "none"),
  );
  const open = new Set([...alarms.querySelectorAll("details[open] summary")].map((summary) => summary.textContent));
  alarms.hidden = board.alarms.length === 0;
  alarms.replaceChildren(h("h2", { id: "alarms-title" }, "Open alarms"), ...board.alarms.map((finding) => alarm(finding, here(finding.target))));
  for (const details of alarms.querySelectorAll("details")) details.open = open.has(details.querySelector("summary").textContent);
  const wanted = search.value.trim().toLowerCase();
  const shown = board.targets
    .filter((target) => (!only.checked || target.verdict === "growing") && `${target.id} ${target.words}`.toLowerCase().includes(wanted))
    .sort((a, b) => ORDER[a.verdict] - ORDER[b.verdict] || (b.memory ?? 0) - (a.memory ?? 0));
  counted.textContent = shown.length === board.targets.length ? `${grouped(shown.length)} targets` : `${grouped(shown.length)} of ${grouped(board.targets.length)} targets`;
  // Whoever is on a row stays there.
  const at = body.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  body.replaceChildren(...shown.map(row));
  if (at) [...body.querySelectorAll("a")].find((link) => link.getAttribute("href") === at)?.focus();
}

// ---- one target

let target = null;
let asked = 0;
const chart = h("div", { class: "chart" });
const sentence = h("p", { id: "chart-words" });
const facts = h("dl", { class: "cards" });
const ownAlarms = h("div");
const events = h("div");
const sites = h("div");
const made = h("section", { id: "parts", "aria-labelledby": "parts-title", hidden: true });
const profile = profiles(ask);
const name = h("h2", { id: "target-title", tabindex: "-1" });
const ranges = h("fieldset", { class: "choice", role: "radiogroup", "aria-label": "How far back" }, RANGES.map(([label, seconds]) => h("label", {},
  h("input", { type: "radio", name: "range", value: seconds, checked: seconds === range, onchange: () => { range = seconds; readTarget(); } }),
  h("span", {}, label))));
const backToTargets = h("a", { href: "#/", class: "back" }, "\u2190 All targets");
const detail = [
  h("p", {}, backToTargets),
  h("section", { "aria-labelledby": "target-title" }, name, facts, ownAlarms,
    h("div", { class: "bar ranges" }, ranges), sentence, chart),
  made,
  profile.section,
  h("section", { "aria-labelledby": "events-title" }, h("h2", { id: "events-title" }, "Events"), events),
  h("section", { "aria-labelledby": "found-title" }, h("h2", { id: "found-title" }, "Findings"), sites),
];
let series = null;

async function readTarget() {
  const [wanted, number] = [target, (asked += 1)];
  try {
    const [newSeries, list] = await Promise.all([
      ask(`/api/series?target=${encodeURIComponent(wanted)}&seconds=${range}`),
      ask(`/api/found?target=${encodeURIComponent(wanted)}`),
    ]);
    // A later question has its own answer.
    if (number !== asked) return;
    series = newSeries;
    sentence.textContent = words(series);
    draw(chart, series);
    events.replaceChildren(series.events.length === 0
      ? h("p", { class: "empty" }, "Nothing happened in this time.")
      : h("ul", { class: "events" }, series.events.map((event) => h("li", {}, h("time", {}, moment(event.at)), " ", h("span", { class: `badge ${event.kind}` }, event.kind), " ", event.text))));
    const open = new Set([...sites.querySelectorAll("details[open] summary")].map((summary) => summary.textContent));
    sites.replaceChildren(found(list.found));
    for (const details of sites.querySelectorAll("details")) details.open = open.has(details.querySelector("summary").textContent);
    const table = parts(series);
    made.hidden = table === null;
    made.replaceChildren(h("h2", { id: "parts-title" }, "What memory is made of"), table ?? "");
    main.dataset.shown = wanted;
    await profile.open(wanted, board.targets.find((one) => one.id === wanted)?.since ?? null);
  } catch (error) {
    complain(error);
  }
}

function updateTarget() {
  const now = board.targets.find((one) => one.id === target);
  name.textContent = target;
  facts.replaceChildren();
  if (now) {
    facts.append(
      card("Verdict", now.verdict, now.words === now.verdict ? "" : now.words, now.verdict === "growing" ? "error" : "none"),
      card("Memory", amount(now.memory), `resident ${amount(now.resident)}`, "live"),
      card("Until its limit", now.hours_left === null ? "\u2013" : hours(now.hours_left), now.limit === null ? "no limit is known" : `${amount(now.limit)}, ${now.limit_of}`, now.hours_left === null ? "none" : "leak-possible"),
      card("Threads, descriptors", `${now.threads ?? "\u2013"}, ${now.descriptors ?? "\u2013"}`, `${grouped(now.restarts)} restarts`, "none"));
  } else {
    facts.append(card("Verdict", "gone", "no process of it runs now", "none"));
  }
  ownAlarms.replaceChildren(...board.alarms.filter((finding) => finding.target === target).map((finding) => alarm(finding, here(finding.target))));
}

// ---- what is shown

const machines = isMany ? machineList(card) : null;

/** What the address names: a machine, where there are many, and a target. */
function wantedPlace() {
  const found = location.hash.match(isMany ? /^#\/machine\/([^/]*)(?:\/target\/(.*))?$/ : /^#()\/target\/(.*)$/);
  const decoded = (text) => {
    try {
      return text === undefined ? null : decodeURIComponent(text);
    } catch {
      return null;
    }
  };
  return { machine: isMany ? decoded(found?.[1]) : null, target: decoded(found?.[2]) };
}

function routeMachines(isNew) {
  title.textContent = "All machines";
  document.title = "All machines \u2013 leakscope monitor";
  if (isNew || !main.contains(machines.body)) main.replaceChildren(...machines.shown);
  main.dataset.shown = "machines";
}

function route(isNew) {
  if (isMany && machine === null) return routeMachines(isNew);
  if (!board) return;
  target = wantedPlace().target;
  title.textContent = board.machine;
  document.title = `${target ?? board.machine} \u2013 leakscope monitor`;
  backToTargets.href = here();
  if (target === null) {
    if (isNew || !main.contains(body)) main.replaceChildren(...overview);
    update();
    main.dataset.shown = "all";
  } else {
    if (isNew || !main.contains(chart)) {
      // What belongs to another target goes at once.
      made.hidden = true;
      profile.close();
      main.replaceChildren(...detail);
    }
    updateTarget();
    readTarget();
    if (isNew) name.focus();
  }
}

function complain(error) {
  trouble.hidden = false;
  trouble.textContent = `The ${isMany ? "collector" : "daemon"} does not answer (${error.message}); what is shown is from ${board ? moment(board.at) : "nowhere"}. It is asked again.`;
}

const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString("sv-SE");

async function refreshMachines() {
  const list = (await ask("/api/machines")).machines;
  // Somebody may have gone on to one of them meanwhile.
  if (machine !== null) return;
  machines.update(list);
  status.textContent = `leakscope monitor, asked at ${clock(Date.now() / 1000)}`;
  route(false);
}

async function refreshBoard() {
  const wanted = machine;
  const answer = await fetch(address("/api/board"), { cache: "no-store", headers: tag ? { "If-None-Match": tag } : {} });
  if (wanted !== machine) return;
  if (answer.status === 200) {
    const isFirst = board === null;
    const newest = await answer.json();
    if (wanted !== machine) return;
    board = newest;
    tag = answer.headers.get("ETag");
    if (board.passes > 0) {
      status.textContent = `leakscope monitor, pass ${grouped(board.passes)} at ${isMany ? moment(board.at) : clock(board.at)}`;
      route(isFirst);
    }
  } else if (answer.status !== 304) {
    throw new Error(`it answered ${answer.status}`);
  }
}

let timer = null;
let round = 0;

async function refresh() {
  const own = (round += 1);
  clearTimeout(timer);
  let wait = RETRY_MS;
  try {
    if (isMany && machine === null) await refreshMachines();
    else await refreshBoard();
    if (board?.passes > 0 || machine === null && isMany) document.getElementById("page").dataset.ready = "true";
    trouble.hidden = true;
    if (board) wait = Math.min(Math.max(board.interval_seconds, 1) * 1000, RETRY_MS);
  } catch (error) {
    complain(error);
  }
  // A later round has a timer of its own.
  if (own === round) timer = setTimeout(refresh, wait);
}

/** Goes where the address points to; another machine is asked at once. */
function follow() {
  series = null;
  chart.replaceChildren();
  const wanted = wantedPlace().machine;
  if (wanted === machine) return route(true);
  machine = wanted;
  [board, tag, target] = [null, null, null];
  // What was asked of another one has no place any more.
  asked += 1;
  search.value = "";
  if (machine !== null) main.replaceChildren(h("p", { class: "help" }, `${machine} is asked for.`));
  delete main.dataset.shown;
  route(true);
  refresh();
}

document.getElementById("page").append(
  h("a", { class: "skip", href: "#main", onclick: (event) => { event.preventDefault(); main.focus(); } }, "To the targets"),
  h("header", {}, status, title, themeButton(() => series && target && draw(chart, series))),
  trouble,
  main,
  h("footer", {}, h("p", {}, h("kbd", {}, "/"), " searches, ", h("kbd", {}, "f"), " the flame graph, in which arrow keys move; ", h("kbd", {}, "Esc"), " goes back to all targets", isMany ? " and all machines." : [". ", h("a", { href: "/metrics" }, "Metrics for Prometheus")])),
);
addEventListener("hashchange", follow);
addEventListener("resize", settled(() => series && target && draw(chart, series)));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/" && !event.target.matches("input[type=search]")) {
    event.preventDefault();
    if (target !== null) location.hash = here();
    // The table is there after the address has changed.
    setTimeout(() => (isMany && machine === null ? machines.search : search).focus());
  } else if (event.key === "f" && target !== null && !profile.section.hidden && !event.target.matches("input[type=search], select")) {
    event.preventDefault();
    profile.search.focus();
    profile.search.scrollIntoView({ block: "center" });
  } else if (event.key === "Escape" && profile.section.contains(event.target)) {
    // It goes back from a zoom, or out of a search.
    if (event.target === profile.search) profile.search.blur();
  } else if (event.key === "Escape" && target !== null) {
    location.hash = here();
  } else if (event.key === "Escape" && event.target === search) {
    search.value = "";
    update();
  } else if (event.key === "Escape" && event.target === machines?.search) {
    machines.search.value = "";
    machines.update();
  } else if (event.key === "Escape" && machine !== null) {
    location.hash = "#/";
  }
});
machine = wantedPlace().machine;
refresh();
