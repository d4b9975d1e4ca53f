// Elements without markup: names out of foreign files only ever become text nodes and attribute values.

/** Makes an element. Properties that begin with "on" are listeners, `class` and others attributes; null leaves out. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat()) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
  return element;
}

const GROUPED = new Intl.NumberFormat("en-US");

/** 1234567 as 1,234,567. */
export function grouped(number) {
  return GROUPED.format(number);
}

/** A number of bytes in a few characters. */
export function bytes(number) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
  let unit = 0;
  while (number >= 1024 && unit + 1 < units.length) {
    number /= 1024;
    unit += 1;
  }
  const digits = unit === 0 || number >= 100 || Number.isInteger(number) ? 0 : number >= 10 ? 1 : 2;
  return `${number.toFixed(digits)} ${units[unit]}`;
}

/** At most three digits that count. */
function short(number) {
  return String(number >= 100 ? Math.round(number) : Number(number.toPrecision(2)));
}

/** Seconds in words that a person takes in at once. */
export function seconds(number) {
  if (number === 0) return "0 s";
  if (number < 1e-6) return `${short(number * 1e9)} ns`;
  if (number < 1e-3) return `${short(number * 1e6)} \u00b5s`;
  if (number < 1) return `${short(number * 1e3)} ms`;
  if (number < 120) return `${Number(number.toPrecision(3))} s`;
  const tenths = (value) => Number(value.toFixed(1));
  if (number < 7200) return `${tenths(number / 60)} min`;
  if (number < 172800) return `${tenths(number / 3600)} h`;
  return `${tenths(number / 86400)} d`;
}

/** Calls `run` once the last call is `ms` old. */
export function settled(run, ms = 120) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(run, ms);
  };
}
