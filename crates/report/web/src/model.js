// The data of the page, and questions about it.

export const METRICS = [
  { id: "leaked", words: "Leaked", unit: "bytes", what: "Bytes that are definitely, indirectly or possibly lost" },
  { id: "live", words: "Live", unit: "bytes", what: "Bytes that were live at the end" },
  { id: "peak", words: "Peak", unit: "bytes", what: "The most bytes that each site held at any time" },
  { id: "temporary", words: "Temporary", unit: "blocks", what: "Blocks that were freed with no other allocation in between" },
  { id: "total", words: "Total", unit: "bytes", what: "All bytes that were allocated" },
];

/** Reads the document that the page embeds. */
export async function load() {
  const element = document.getElementById("data");
  let text = element.textContent;
  if (element.dataset.encoding === "deflate") {
    const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    text = await new Response(stream).text();
  }
  return new Model(JSON.parse(text));
}

export class Model {
  constructor(data) {
    this.data = data;
    this.parents = Uint32Array.from(data.nodes.up, (up, node) => node - up);
    this.sources = new Map(data.sources.map(([path, lines]) => [data.texts[path], new Map(lines)]));
    this.records = data.records.map((record, number) => ({ ...record, number, text: null }));
    for (const record of this.records) {
      const frames = this.stack(record.node);
      record.place = primary(frames);
    }
  }

  /** A frame of the tree by its node. */
  frame(node) {
    const { texts, frames, nodes } = this.data;
    const frame = nodes.frame[node];
    return {
      name: texts[frames.name[frame]],
      file: texts[frames.file[frame]],
      line: frames.line[frame],
      module: texts[frames.module[frame]],
    };
  }

  /** Frames from the allocation function outwards. */
  stack(node) {
    const frames = [];
    for (; node !== 0; node = this.parents[node]) frames.push(this.frame(node));
    return frames;
  }

  /** Everything that can be searched for in a record, in lower case. */
  searchable(record) {
    if (record.text === null) {
      const frames = this.stack(record.node);
      const words = frames.flatMap((frame) => [frame.name, `${frame.file}:${frame.line}`, frame.module]);
      record.functions = frames.map((frame) => frame.name.toLowerCase());
      record.text = [record.title, record.fingerprint, ...words].join("\n").toLowerCase();
    }
    return record.text;
  }

  /** What each node of the tree has of a column of the sites, with all that lies below it. */
  sums(column, process) {
    const { sites, nodes } = this.data;
    const amounts = new Float64Array(nodes.up.length);
    column.forEach((amount, site) => {
      if (process === null || sites.process[site] === process) amounts[sites.node[site]] += amount;
    });
    for (let node = amounts.length - 1; node > 0; node--) amounts[this.parents[node]] += amounts[node];
    return amounts;
  }

  /**
   * The tree of a metric; siblings of one name are one. `process` is a number, or null for all. Where sites say what they
   * had `before`, each frame has `now` and `before` as well, whatever the metric.
   */
  tree(metric, process) {
    const { sites, nodes, texts, frames } = this.data;
    const amounts = this.sums(sites[metric], process);
    const times = sites.before && { now: this.sums(sites.live, process), before: this.sums(sites.before, process) };
    const root = { name: "all", value: amounts[0], children: [], module: "", file: "", now: times?.now[0], before: times?.before[0] };
    const merged = new Array(amounts.length);
    const known = new Map();
    merged[0] = root;
    for (let node = 1; node < amounts.length; node++) {
      if (amounts[node] === 0) continue;
      const parent = merged[this.parents[node]];
      const name = frames.name[nodes.frame[node]];
      let children = known.get(parent);
      if (!children) known.set(parent, (children = new Map()));
      let child = children.get(name);
      if (!child) {
        const frame = nodes.frame[node];
        child = { name: texts[name], value: 0, children: [], module: texts[frames.module[frame]], file: texts[frames.file[frame]] };
        if (times) child.now = child.before = 0;
        children.set(name, child);
        parent.children.push(child);
      }
      child.value += amounts[node];
      if (times) {
        child.now += times.now[node];
        child.before += times.before[node];
      }
      merged[node] = child;
    }
    return root;
  }
}

/** The frame that a person thinks of as the place: see `Sources::primary` in the report crate. */
function primary(frames) {
  // The allocation function stands in front of all stacks but those of errors that another tool found; it has no file.
  const outside = frames[0]?.file ? frames : frames.slice(1);
  return (
    outside.find((frame) => frame.file && !frame.file.startsWith("/")) ??
    outside.find((frame) => frame.file && !frame.file.startsWith("/usr/")) ??
    outside[0] ??
    frames[0] ?? { name: "", file: "", line: 0, module: "" }
  );
}

/** The last part of a path. */
export function fileName(path) {
  return path.slice(path.lastIndexOf("/") + 1);
}
