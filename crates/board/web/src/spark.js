// A small line without axes.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 120;
const HEIGHT = 28;

/** A sparkline of values; `words` says the same for those who do not see it. */
export function spark(values, verdict, words) {
  const picture = document.createElementNS(SVG, "svg");
  picture.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  picture.setAttribute("class", `spark ${verdict}`);
  picture.setAttribute("role", "img");
  picture.setAttribute("aria-label", words);
  if (values.length < 2) return picture;
  const [low, high] = [Math.min(...values), Math.max(...values)];
  // What varies by less than a hundredth is flat.
  const flat = high - low < Math.abs(high) / 100;
  const x = (index) => 1 + (index * (WIDTH - 2)) / (values.length - 1);
  const y = (value) => (flat ? HEIGHT / 2 : HEIGHT - 2 - ((value - low) / (high - low)) * (HEIGHT - 4));
  const points = values.map((value, index) => `${x(index).toFixed(1)},${y(value).toFixed(1)}`);
  const area = document.createElementNS(SVG, "polygon");
  area.setAttribute("points", `1,${HEIGHT} ${points.join(" ")} ${WIDTH - 1},${HEIGHT}`);
  const line = document.createElementNS(SVG, "polyline");
  line.setAttribute("points", points.join(" "));
  picture.append(area, line);
  return picture;
}
