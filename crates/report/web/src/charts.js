// The heap over time (uPlot) and the histograms (tables with bars: a screen reader reads them as they are).

import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";

import { bytes, grouped, h, seconds } from "./dom.js";

/** A colour of the page. */
export const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
/** Steps of an axis in bytes: powers of two. */
const BINARY_STEPS = Array.from({ length: 60 }, (_, power) => 2 ** power);
/** Steps of an axis in seconds: decimal ones, and those of a clock. */
const TIME_STEPS = [
  ...[0.001, 0.01, 0.1, 1].flatMap((unit) => [unit, 2 * unit, 5 * unit]),
  ...[10, 15, 30], ...[1, 2, 5, 10, 15, 30].map((minutes) => minutes * 60),
  ...[1, 2, 3, 6, 12].map((hours) => hours * 3600), ...[1, 2, 5, 10, 20, 50, 100, 200, 500].map((days) => days * 86400),
];
const HUES = [205, 25, 130, 285, 50, 345, 175, 240];

export function charts(model, getProcess) {
  const place = h("div", { class: "chart" });
  const words = h("p", { id: "heap-words" });
  const growth = h("div", { class: "chart" });
  const growthList = h("ol", { class: "growing" });
  const growthPart = h("div", { class: "growth" }, h("h3", {}, "Sites that grew between leak checks"), growth, growthList);
  const sizes = h("div");
  const lifetimes = h("div");
  let plots = [];

  /** Without one process chosen, charts show the one with most live bytes: clocks of two do not add up. */
  function process() {
    const chosen = getProcess();
    if (chosen !== null) return model.data.processes[chosen];
    return [...model.data.processes].sort((a, b) => b.heap[3] - a.heap[3] || b.heap[0] - a.heap[0])[0];
  }

  function draw() {
    for (const plot of plots) plot.destroy();
    plots = [];
    const of = process();
    if (!of) return;
    const { series } = of;
    words.textContent = describe(of, model.data.processes.length > 1);
    place.hidden = series.seconds.length < 2;
    if (!place.hidden) plots.push(plot(place, heapOptions(place), [series.seconds, series.live, series.resident.map((value) => value || null)]));
    growthPart.hidden = of.growth.sites?.length === 0 || of.growth.seconds.length < 2;
    if (!growthPart.hidden) drawGrowth(of.growth);
    sizes.replaceChildren(histogram("Blocks by size", "Mean size of the blocks of a site", of.sizes.map((count, bin) => [bin === 0 ? "0 B" : `${bytes(2 ** (bin - 1))} \u2013`, count])));
    lifetimes.replaceChildren(histogram("Blocks by lifetime", "A sample of the blocks that were freed", of.lifetimes.map((count, bin) => [`${seconds(of.lifetime_seconds * 4 ** bin)} \u2013`, count])));
  }

  function drawGrowth({ seconds: times, sites }) {
    // Stacked: each line is drawn on top of those below it.
    const sums = times.map(() => 0);
    const stacked = sites.map(([, amounts]) => amounts.map((amount, moment) => (sums[moment] += amount)));
    const names = sites.map(([node]) => model.stack(node)[1]?.name ?? "");
    // The highest first, so that lower areas cover it.
    const order = stacked.map((_, number) => number).reverse();
    plots.push(plot(growth, {
      ...common(growth, 240),
      // The list below says the same, and names may be long.
      legend: { show: false },
      series: [{ label: "Time" }, ...order.map((number) => ({
        label: names[number],
        stroke: `hsl(${HUES[number % HUES.length]} 65% 45%)`,
        fill: `hsl(${HUES[number % HUES.length]} 65% 60%)`,
        value: (_, value) => (value === null ? "" : bytes(value)),
      }))],
    }, [times, ...order.map((number) => stacked[number])]));
    growthList.replaceChildren(...sites.map(([node, amounts], number) => h("li", {},
      h("span", { class: "swatch", style: `background:hsl(${HUES[number % HUES.length]} 65% 60%)` }), " ",
      h("span", { class: "function" }, names[number]),
      ` ${bytes(amounts[0])} \u2192 ${bytes(amounts[amounts.length - 1])}`)));
  }

  new ResizeObserver(() => draw()).observe(words);

  const section = h("section", { id: "heap", "aria-labelledby": "heap-title" },
    h("h2", { id: "heap-title" }, "Heap over time"), words, place, growthPart);
  const bins = h("section", { id: "histograms", "aria-labelledby": "histograms-title" },
    h("h2", { id: "histograms-title" }, "Sizes and lifetimes"), h("div", { class: "two" }, sizes, lifetimes));
  return { sections: [section, bins], draw };
}

function describe(of, several) {
  const { live, seconds: times } = of.series;
  const name = several ? `${of.name} (${of.pid}): ` : "";
  if (times.length < 2) return `${name}Too short for a chart: it ran for ${seconds(of.seconds)}.`;
  const peak = live.indexOf(Math.max(...live));
  return `${name}${bytes(live[0])} live at first, at most ${bytes(live[peak])} after ${seconds(times[peak])}, ${bytes(live[live.length - 1])} at the end.`;
}

function common(place, height) {
  const axis = { stroke: css("--text"), grid: { stroke: css("--line"), width: 1 }, ticks: { stroke: css("--line") } };
  return {
    width: Math.max(place.clientWidth || place.parentElement.clientWidth, 260),
    height,
    scales: { x: { time: false }, y: { range: (_, low, high) => [0, Math.max(high, 1) * 1.05] } },
    axes: [
      { ...axis, incrs: TIME_STEPS, space: 70, values: (_, values) => values.map(seconds) },
      { ...axis, size: 72, incrs: BINARY_STEPS, values: (_, values) => values.map(bytes) },
    ],
    legend: { live: true },
    cursor: { y: false },
  };
}

function heapOptions(place) {
  const value = (_, number) => (number === null ? "" : bytes(number));
  return {
    ...common(place, 260),
    series: [
      { label: "Time", value: (_, number) => (number === null ? "" : seconds(number)) },
      { label: "Live blocks", stroke: css("--accent"), fill: css("--accent-soft"), width: 2, value },
      { label: "Resident memory", stroke: css("--muted"), width: 1.5, dash: [5, 4], value },
    ],
  };
}

/** Draws a chart into an element that is emptied. */
export function plot(place, options, data) {
  place.replaceChildren();
  const made = new uPlot(options, data, place);
  const canvas = made.root.querySelector("canvas");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", "Chart; the sentence above says the same");
  return made;
}

function histogram(title, what, bins) {
  const first = bins.findIndex(([, count]) => count > 0);
  const shown = first < 0 ? [] : bins.slice(first, bins.findLastIndex(([, count]) => count > 0) + 1);
  if (shown.length === 0) return h("div", { class: "histogram" }, h("h3", {}, title), h("p", { class: "empty" }, "Nothing was recorded."));
  const most = Math.max(...shown.map(([, count]) => count));
  return h("div", { class: "histogram" }, h("h3", {}, title), h("p", { class: "help" }, what),
    h("table", {}, h("thead", { class: "hidden" }, h("tr", {}, h("th", { scope: "col" }, "From"), h("th", { scope: "col" }, "Blocks"))),
      h("tbody", {}, shown.map(([from, count]) => h("tr", {},
        h("th", { scope: "row" }, from),
        h("td", {}, count > 0 && h("span", { class: "amount", style: `inline-size:${((100 * count) / most).toFixed(2)}%` }), h("span", { class: "count" }, grouped(count))))))));
}
