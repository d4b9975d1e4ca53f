// Flame graphs: d3-flame-graph draws and zooms; this adds metrics, search, the keyboard and words for screen readers.

import flamegraph from "d3-flame-graph";
import { select } from "d3-selection";

import { bytes, grouped, h, settled } from "./dom.js";
import { METRICS, fileName } from "./model.js";

/** Parts that are smaller than this share of the whole are not drawn: zooming in draws them. */
const SMALLEST_SHARE = 1 / 20000;

/** A colour by module: frames of one library look alike. */
function colour(frame) {
  if (frame.name === "all") return "hsl(0 0% 78%)";
  let hash = 0;
  for (const letter of frame.module) hash = (hash * 31 + letter.charCodeAt(0)) >>> 0;
  let shade = 0;
  for (const letter of frame.name) shade = (shade * 33 + letter.charCodeAt(0)) >>> 0;
  return `hsl(${(hash % 24) * 15} 58% ${74 + (shade % 12)}%)`;
}

/** Red for more than before, blue for less: the larger the change beside what is there, the deeper. */
function colourOfChange({ now, before }) {
  const share = Math.abs(now - before) / Math.max(now, before, 1);
  if (share < 0.005) return "hsl(0 0% 84%)";
  return `hsl(${now > before ? 4 : 212} ${Math.round(55 + 25 * share)}% ${Math.round(90 - 20 * share)}%)`;
}

function pruned(node, least) {
  const children = node.children.filter((child) => child.value >= least).map((child) => pruned(child, least));
  return { ...node, children, whole: node };
}

/** A flame graph of a model. `show` gives it another one, and other metrics; `inBytes` writes bytes as the page does. */
export function flame(model, getProcess, { metrics = METRICS, inBytes = bytes } = {}) {
  let metric = metrics[0];
  let chart = null;
  let root = null;
  let total = 0;
  let drawn = new Map();
  let focused = null;
  let width = 0;
  const status = h("p", { class: "status", role: "status", "aria-live": "polite" });
  const place = h("div", { class: "flame", role: "group", "aria-label": "Flame graph. Arrow keys move, Enter zooms, Escape goes back." });
  const search = h("input", { type: "search", id: "flame-search", placeholder: "Function", autocomplete: "off", "aria-describedby": "flame-found" });
  const found = h("output", { id: "flame-found", for: "flame-search" });
  const empty = h("p", { class: "empty" });
  const reset = h("button", { type: "button", onclick: () => unzoom() }, "Reset zoom");

  const amount = (value) => (metric.unit === "bytes" ? `${inBytes(value)} (${grouped(value)} bytes)` : `${grouped(value)} blocks`);
  const share = (value) => `${((100 * value) / (total || 1)).toFixed(1)} %`;
  const change = ({ now, before }) => {
    if (now === undefined) return "";
    return now === before ? ", as much as before" : `, ${inBytes(Math.abs(now - before))} ${now > before ? "more" : "less"} than before`;
  };
  const describe = (d) => `${d.data.name}: ${amount(d.data.value)}, ${share(d.data.value)}${change(d.data)}${d.data.module ? `, in ${fileName(d.data.module)}` : ""}`;

  const choice = h("fieldset", { class: "choice" });
  function choose() {
    choice.hidden = metrics.length < 2;
    choice.replaceChildren(h("legend", { class: "hidden" }, "What is added up"), ...metrics.map((each) =>
      h("label", { title: each.what },
        h("input", { type: "radio", name: "metric", value: each.id, checked: each === metric, onchange: () => { metric = each; draw(); } }),
        h("span", {}, each.words))));
  }
  choose();

  function show(another, ofThese) {
    [model, metrics] = [another, ofThese];
    metric = metrics.find((each) => each.id === metric.id) ?? metrics[0];
    choose();
    draw();
  }

  function draw() {
    const whole = model.tree(metric.id, getProcess());
    total = whole.value;
    place.replaceChildren();
    focused = null;
    status.textContent = metric.what;
    empty.textContent = whole.value === 0 ? `Nothing to show: no ${metric.words.toLowerCase()} ${metric.unit}.` : "";
    place.hidden = reset.hidden = whole.value === 0;
    if (whole.value === 0) {
      found.textContent = "";
      return;
    }
    width = place.clientWidth;
    chart = flamegraph()
      .width(Math.max(width, 280))
      .cellHeight(22)
      .minFrameSize(1)
      .transitionDuration(0)
      .inverted(true)
      .resetHeightOnZoom(true)
      .sort((a, b) => b.data.value - a.data.value)
      .label(describe)
      .color((d) => (d.highlight ? "#ffe14d" : d.data.now === undefined ? colour(d.data) : colourOfChange(d.data)))
      .setSearchMatch((d, term) => d.data.name.toLowerCase().includes(term))
      .onHover((d) => { status.textContent = describe(d); })
      .onClick((d) => { focused = d; decorate(); status.textContent = describe(d); });
    chart.setSearchHandler((results, sum) => {
      found.textContent = `${grouped(results.length)} frames, ${amount(sum)}, ${share(sum)}`;
    });
    select(place).datum(pruned(whole, whole.value * SMALLEST_SHARE)).call(chart);
    root = select(place).datum();
    if (search.value) find();
    else found.textContent = "";
    decorate();
  }

  /** Makes what was drawn reachable: one stop of Tab, and names. */
  function decorate() {
    drawn = new Map();
    const current = focused ?? root;
    select(place).selectAll("g.frame").each(function (d) {
      drawn.set(d.id, this);
      this.setAttribute("role", "button");
      this.setAttribute("aria-label", describe(d));
      this.setAttribute("tabindex", d === current ? "0" : "-1");
    });
    if (!drawn.has(current.id)) drawn.get(root.id)?.setAttribute("tabindex", "0");
  }

  function unzoom() {
    if (!chart) return;
    focused = null;
    chart.resetZoom();
    focused = null;
    decorate();
    status.textContent = metric.what;
  }

  const find = settled(() => {
    if (!chart || place.hidden) return;
    const term = search.value.trim().toLowerCase();
    if (term) chart.search(term);
    else {
      chart.clear();
      found.textContent = "";
    }
    decorate();
  });
  search.addEventListener("input", find);

  function moveTo(d) {
    const element = d && drawn.get(d.id);
    if (!element) return;
    for (const other of place.querySelectorAll('g[tabindex="0"]')) other.setAttribute("tabindex", "-1");
    focused = d;
    element.setAttribute("tabindex", "0");
    element.focus();
  }

  const visible = (d) => drawn.has(d.id) && !d.data.hide;
  const beside = (d, step) => {
    const row = (d.parent?.children ?? []).filter(visible);
    return row[row.indexOf(d) + step];
  };
  place.addEventListener("keydown", (event) => {
    const d = select(event.target).datum();
    if (!d) return;
    const moves = {
      ArrowUp: () => moveTo(d.parent),
      ArrowDown: () => moveTo((d.children ?? []).filter(visible)[0]),
      ArrowLeft: () => moveTo(beside(d, -1)),
      ArrowRight: () => moveTo(beside(d, 1)),
      Home: () => moveTo(root),
      Enter: () => { chart.zoomTo(d); moveTo(d); },
      " ": () => { chart.zoomTo(d); moveTo(d); },
      Escape: () => { unzoom(); moveTo(root); },
    };
    if (!moves[event.key]) return;
    event.preventDefault();
    moves[event.key]();
  });
  place.addEventListener("focusin", (event) => {
    const d = select(event.target).datum();
    if (d) status.textContent = describe(d);
  });

  new ResizeObserver(() => {
    if (place.clientWidth !== width && place.clientWidth > 0) draw();
  }).observe(place);

  const section = h("section", { id: "flame", "aria-labelledby": "flame-title" },
    h("h2", { id: "flame-title" }, "Where memory goes"),
    h("div", { class: "bar" },
      choice,
      h("label", { class: "field" }, h("span", { class: "hidden" }, "Search the flame graph"), search),
      reset, found),
    status, empty, place);
  return { section, draw, search, show };
}
