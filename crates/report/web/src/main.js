// The page of `leakscope report --format html`.

import "./style.css";

import { charts } from "./charts.js";
import { bytes, grouped, h } from "./dom.js";
import { flame } from "./flame.js";
import { load } from "./model.js";
import { records } from "./records.js";

function themeButton(changed) {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const button = h("button", { type: "button", class: "theme", onclick: () => set(current() === "dark" ? "light" : "dark") });
  const current = () => document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");
  function label() {
    button.textContent = current() === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-label", `Use ${current() === "dark" ? "light" : "dark"} colours`);
  }
  function set(theme) {
    document.documentElement.dataset.theme = theme;
    label();
    changed();
  }
  dark.addEventListener("change", () => { label(); changed(); });
  label();
  return button;
}

function card(name, amount, words, kind) {
  return h("div", { class: `card ${kind}` }, h("dt", {}, name), h("dd", {}, h("strong", {}, amount), h("span", {}, words)));
}

function cards(processes) {
  const sum = (of) => processes.reduce((total, process) => total + of(process), 0);
  const blocks = (count) => `in ${grouped(count)} blocks`;
  const kinds = ["Definitely lost", "Indirectly lost", "Possibly lost", "Still reachable"];
  const ids = ["leak-definite", "leak-indirect", "leak-possible", "leak-reachable"];
  const list = [];
  if (processes.some((process) => process.classified)) {
    kinds.forEach((name, kind) => {
      const count = sum((process) => process.totals[kind][1]);
      list.push(card(name, bytes(sum((process) => process.totals[kind][0])), blocks(count), count ? ids[kind] : "none"));
    });
    const hidden = sum((process) => process.suppressed[1]);
    if (hidden) list.push(card("Suppressed", bytes(sum((process) => process.suppressed[0])), blocks(hidden), "none"));
  } else {
    list.push(card("Live at the end", bytes(sum((process) => process.heap[3])), blocks(sum((process) => process.heap[4])), "live"));
  }
  const errors = sum((process) => process.errors);
  if (errors) list.push(card("Errors", grouped(errors), "memory errors", "error"));
  list.push(card("Allocated in all", bytes(sum((process) => process.heap[0])), blocks(sum((process) => process.heap[1])), "none"));
  return h("dl", { class: "cards" }, list);
}

function header(model, chosen, theme) {
  const { processes } = model.data;
  const first = processes[0];
  const title = processes.length === 1 ? first.name : `${first?.name ?? "Nothing was recorded"}${processes.length > 1 ? ` and ${processes.length - 1} more` : ""}`;
  const parts = [h("p", { class: "tool" }, `leakscope ${model.data.version}`), h("h1", {}, title), theme];
  if (processes.length > 1) {
    parts.push(h("label", { class: "field process" }, h("span", {}, "Process"), h("select", { id: "process", onchange: (event) => chosen(event.target.value === "" ? null : Number(event.target.value)) },
      h("option", { value: "" }, `All ${processes.length}`),
      processes.map((process, number) => h("option", { value: number }, `${process.name} (${process.pid})`)))));
  } else if (first) {
    parts.push(h("p", { class: "command" }, h("code", {}, first.command), `, process ${first.pid}, ${first.end}`));
  }
  return h("header", {}, parts);
}

async function start() {
  const page = document.getElementById("page");
  let model;
  try {
    model = await load();
  } catch (error) {
    page.append(h("p", { role: "alert" }, `The data of this page cannot be read (${error}). It needs a browser of 2023 or later, and a complete file.`));
    return;
  }
  const { processes } = model.data;
  let process = null;
  const getProcess = () => process;
  const graph = flame(model, getProcess);
  const table = records(model, getProcess);
  const chart = charts(model, getProcess);
  const totals = h("div");
  const notes = h("ul", { class: "notes", "aria-label": "What is missing" });
  function update() {
    const shown = process === null ? processes : [processes[process]];
    totals.replaceChildren(cards(shown));
    const words = shown.flatMap((each) => each.notes.map((note) => (shown.length > 1 ? `${each.name} (${each.pid}): ${note}` : note)));
    notes.replaceChildren(...words.slice(0, 20).map((note) => h("li", {}, note)));
    notes.hidden = words.length === 0;
    graph.draw();
    table.update(true);
    chart.draw();
  }
  const links = [["flame", "Where memory goes"], ["findings", "Findings"], ["heap", "Heap over time"], ["histograms", "Sizes and lifetimes"]];
  page.append(
    h("a", { href: "#findings", class: "skip" }, "Skip to the findings"),
    header(model, (chosen) => { process = chosen; update(); }, themeButton(() => chart.draw())),
    h("nav", { "aria-label": "Parts of the page" }, links.map(([id, words]) => h("a", { href: `#${id}` }, words))),
    h("main", {}, totals, notes, graph.section, table.section, chart.sections),
    h("footer", {}, h("p", {}, h("kbd", {}, "/"), " searches the findings, ", h("kbd", {}, "f"), " the flame graph; in it arrow keys move, ", h("kbd", {}, "Enter"), " zooms, ", h("kbd", {}, "Esc"), " goes back.")),
  );
  update();
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=search], select")) return;
    const field = { "/": table.search, f: graph.search }[event.key];
    if (!field) return;
    event.preventDefault();
    field.focus();
    field.scrollIntoView({ block: "center" });
  });
  page.dataset.ready = "true";
}

start();
