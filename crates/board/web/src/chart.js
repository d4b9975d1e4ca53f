// A target's series, with what happened to it marked.

import { css, plot } from "../../../report/web/src/charts.js";
import { h } from "../../../report/web/src/dom.js";

import { amount, moment } from "./amounts.js";

/** Steps of an axis in bytes: decimal ones, as everywhere on this page. */
const STEPS = Array.from({ length: 15 }, (_, power) => [1, 2, 5].map((step) => step * 10 ** power)).flat();
const LINES = [
  ["memory", "Memory without files", "--accent"],
  ["resident", "Resident", "--muted"],
  ["live_heap", "Live heap", "--note"],
];
const KINDS = { alarm: "--error", oom: "--error", restart: "--warning", exec: "--warning", resolved: "--note" };

/** Memory is what no file stands behind, resident or on swap; what is only glanced at has resident memory alone. */
function columns(series) {
  const { anonymous, swap } = series.values;
  const memory = anonymous?.map((value, at) => (value === null ? null : value + (swap?.[at] ?? 0)));
  return { ...series.values, memory };
}

export function draw(place, series) {
  const values = columns(series);
  const lines = LINES.filter(([name]) => values[name]);
  const shown = series.at.length >= 2 && lines.length > 0;
  place.replaceChildren();
  if (!shown) {
    place.append(h("p", { class: "empty" }, "Nothing has been sampled in this time yet."));
    return;
  }
  const axis = { stroke: css("--text"), grid: { stroke: css("--line"), width: 1 }, ticks: { stroke: css("--line") } };
  const made = plot(place, {
    width: Math.max(place.clientWidth, 260),
    height: 280,
    scales: { x: { time: true, range: () => [series.from, series.to] }, y: { range: (_, low, high) => [0, Math.max(high, 1) * 1.05] } },
    axes: [{ ...axis, space: 60, values: times }, { ...axis, size: 72, incrs: STEPS, values: (_, ticks) => ticks.map(amount) }],
    legend: { live: true },
    cursor: { y: false },
    hooks: { draw: [(chart) => mark(chart, series.events)] },
    series: [
      { label: "Time", value: (_, at) => (at === null ? "" : moment(at)) },
      ...lines.map(([, label, colour], number) => ({
        label,
        stroke: css(colour),
        fill: number === 0 ? css("--accent-soft") : undefined,
        width: number === 0 ? 2 : 1.5,
        value: (_, value) => (value === null ? "" : amount(value)),
      })),
    ],
  }, [series.at, ...lines.map(([name]) => values[name])]);
  made.root.querySelector("canvas").setAttribute("aria-label", `Chart of memory. ${words(series, values[lines[0][0]])}`);
}

/** The hour of each tick, and the day where it is another one; the day alone where ticks are days apart. */
function times(_, ticks, __, ___, step) {
  let last = "";
  return ticks.map((at) => {
    const [day, hour] = moment(at).split(" ");
    const isNew = day !== last;
    last = day;
    if (step >= 86400) return day.slice(step >= 20 * 86400 ? 0 : 5);
    return isNew ? `${hour}\n${day.slice(5)}` : hour;
  });
}

/** What the chart shows, for those who do not see it. */
export function words(series, values = columns(series).memory ?? series.values.resident ?? []) {
  const known = values.filter((value) => value !== null);
  if (known.length === 0) return "Nothing has been sampled in this time yet.";
  return `${amount(known[0])} at first, at most ${amount(Math.max(...known))}, ${amount(known[known.length - 1])} now.`;
}

function mark(chart, events) {
  const { ctx } = chart;
  const { left, top, width, height } = chart.bbox;
  ctx.save();
  ctx.lineWidth = devicePixelRatio;
  ctx.setLineDash([4 * devicePixelRatio, 3 * devicePixelRatio]);
  for (const event of events) {
    const x = Math.round(chart.valToPos(event.at, "x", true));
    if (x < left || x > left + width) continue;
    ctx.strokeStyle = css(KINDS[event.kind] ?? "--indirect");
    ctx.beginPath();
    ctx.moveTo(x, top);
    ctx.lineTo(x, top + height);
    ctx.stroke();
  }
  ctx.restore();
}
