// Numbers for people, as the monitor's messages write them: bytes in powers of ten, times in words.

/** 488000000 as 488 MB. */
export function amount(value) {
  if (value === null || value === undefined) return "\u2013";
  const sign = value < 0 ? "-" : "";
  let scaled = Math.abs(value);
  for (const unit of ["B", "kB", "MB", "GB", "TB"]) {
    if (scaled < 999.5 || unit === "TB") return `${sign}${scaled.toFixed(scaled < 9.95 && unit !== "B" ? 1 : 0)} ${unit}`;
    scaled /= 1000;
  }
}

/** 5.25 hours as 5.3 h. */
export function hours(value) {
  if (value < 1.5) return `${Math.round(value * 60)} min`;
  if (value < 48) return `${value.toFixed(1)} h`;
  if (value < 24 * 365) return `${(value / 24).toFixed(1)} days`;
  return "more than a year";
}

/** A moment, in the reader's own time zone. */
export function moment(seconds) {
  return new Date(seconds * 1000).toLocaleString("sv-SE", { dateStyle: "short", timeStyle: "short" });
}
