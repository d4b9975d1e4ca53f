// The table of findings: sort, filter, and the details of one.

import { bytes, grouped, h, settled } from "./dom.js";
import { fileName } from "./model.js";

/** Rows that are made at a time. */
const PAGE = 100;

const LEVELS = ["note", "warning", "error"];

export function records(model, getProcess) {
  const { kinds, processes } = model.data;
  const several = processes.length > 1;
  const columns = [
    { id: "kind", words: "Kind", of: (record) => -record.kind, text: true },
    { id: "bytes", words: "Bytes", of: (record) => record.bytes },
    { id: "blocks", words: "Blocks", of: (record) => record.blocks || record.count },
    { id: "function", words: "Function", of: (record) => record.place.name, text: true },
    { id: "module", words: "Module", of: (record) => fileName(record.place.module), text: true },
  ];
  let sort = { column: columns[1], down: true };
  let shown = PAGE;
  const open = new Set();

  const counts = kinds.map((_, kind) => model.records.filter((record) => record.kind === kind && !record.suppressed).length);
  const suppressed = model.records.filter((record) => record.suppressed).length;
  // A page that shows nothing at first would look like a clean program.
  const anyShown = kinds.some((kind, number) => kind.shown && counts[number] > 0);
  const boxes = kinds.map((kind, number) => ({
    kind: number,
    input: h("input", { type: "checkbox", value: kind.id, checked: kind.shown || !anyShown, onchange: () => update(true) }),
  }));
  const hidden = h("input", { type: "checkbox", value: "suppressed", onchange: () => update(true) });
  const modules = [...new Set(model.records.map((record) => record.place.module))].filter(Boolean).sort((a, b) => fileName(a).localeCompare(fileName(b)));
  const module = h("select", { id: "filter-module", onchange: () => update(true) },
    h("option", { value: "" }, "All modules"), modules.map((path) => h("option", { value: path, title: path }, fileName(path))));
  const byFunction = h("input", { type: "search", id: "filter-function", placeholder: "Function", autocomplete: "off" });
  const byText = h("input", { type: "search", id: "filter-text", placeholder: "Any text", autocomplete: "off" });
  const filtered = settled(() => update(true));
  byFunction.addEventListener("input", filtered);
  byText.addEventListener("input", filtered);

  const summary = h("p", { role: "status", "aria-live": "polite", id: "records-found" });
  const more = h("button", { type: "button", class: "more", onclick: () => { shown += 5 * PAGE; update(false); } }, "Show more");
  const body = h("tbody");
  const heads = columns.map((column) => h("th", { scope: "col", class: column.text ? null : "number", "data-column": column.id },
    h("button", {
      type: "button",
      onclick: () => {
        sort = { column, down: sort.column === column ? !sort.down : !column.text };
        update(true);
      },
    }, column.words)));
  const table = h("table", { class: "records", "aria-describedby": "records-found" },
    h("caption", { class: "hidden" }, "Findings"), h("thead", {}, h("tr", {}, heads)), body);

  function chosen() {
    const process = getProcess();
    const on = new Set(boxes.filter((box) => box.input.checked).map((box) => box.kind));
    const [name, text] = [byFunction.value.trim().toLowerCase(), byText.value.trim().toLowerCase()];
    return model.records.filter((record) => {
      if (process !== null && record.process !== process) return false;
      if (record.suppressed ? !hidden.checked : !on.has(record.kind)) return false;
      if (module.value && record.place.module !== module.value) return false;
      if (!name && !text) return true;
      const all = model.searchable(record);
      return (!text || all.includes(text)) && (!name || record.functions.some((each) => each.includes(name)));
    });
  }

  function update(again) {
    if (again) shown = PAGE;
    const list = chosen();
    const { column, down } = sort;
    const order = (a, b) => {
      const [left, right] = [column.of(a), column.of(b)];
      const first = typeof left === "string" ? left.localeCompare(right) : left - right;
      return (down ? -first : first) || b.level - a.level || b.bytes - a.bytes || a.number - b.number;
    };
    list.sort(order);
    heads.forEach((head, number) => {
      const sorted = columns[number] === column ? (down ? "descending" : "ascending") : null;
      if (sorted) head.setAttribute("aria-sort", sorted);
      else head.removeAttribute("aria-sort");
    });
    summary.textContent = list.length === 0 ? "No finding fits." : `${grouped(list.length)} of ${grouped(model.records.length)} findings`;
    more.hidden = list.length <= shown;
    body.replaceChildren(...list.slice(0, shown).flatMap(row));
  }

  function row(record) {
    const kind = kinds[record.kind];
    const { place } = record;
    const id = `record-${record.number}`;
    const isOpen = open.has(record.number);
    const details = h("tr", { class: "details", id, hidden: !isOpen }, h("td", { colspan: columns.length }));
    const toggle = h("button", {
      type: "button", class: "open", "aria-expanded": isOpen, "aria-controls": id,
      onclick: () => {
        const now = details.hidden;
        details.hidden = !now;
        toggle.setAttribute("aria-expanded", now);
        if (now) open.add(record.number);
        else open.delete(record.number);
        if (now && !details.firstChild.firstChild) details.firstChild.append(detail(model, record, several));
      },
    }, h("span", { class: "function" }, place.name), place.file && h("span", { class: "file" }, `${place.file}:${place.line}`));
    if (isOpen) details.firstChild.append(detail(model, record, several));
    const cells = [
      h("td", { "data-label": "Kind" }, h("span", { class: `kind ${kind.id} ${LEVELS[record.level]}` }, record.suppressed ? `${kind.words} (suppressed)` : kind.words)),
      h("td", { class: "number", "data-label": "Bytes", title: grouped(record.bytes) }, record.blocks ? grouped(record.bytes) : ""),
      h("td", { class: "number", "data-label": "Blocks" }, record.blocks ? grouped(record.blocks) : `${grouped(record.count)}\u00d7`),
      h("td", { "data-label": "Function", class: "site" }, toggle),
      h("td", { "data-label": "Module", class: "module", title: place.module }, fileName(place.module)),
    ];
    return [h("tr", { class: "record" }, cells), details];
  }

  const choice = boxes.filter((box) => counts[box.kind] > 0).map((box) =>
    h("label", {}, box.input, h("span", {}, `${kinds[box.kind].words} (${grouped(counts[box.kind])})`)));
  if (suppressed > 0) choice.push(h("label", {}, hidden, h("span", {}, `suppressed (${grouped(suppressed)})`)));

  const section = h("section", { id: "findings", "aria-labelledby": "findings-title" },
    h("h2", { id: "findings-title" }, "Findings"),
    h("div", { class: "bar" },
      h("fieldset", { class: "choice many" }, h("legend", { class: "hidden" }, "Kinds"), choice),
      h("label", { class: "field" }, h("span", { class: "hidden" }, "Function"), byFunction),
      h("label", { class: "field" }, h("span", { class: "hidden" }, "Any text"), byText),
      h("label", { class: "field" }, h("span", { class: "hidden" }, "Module"), module)),
    summary, table, more);
  return { section, update, search: byText };
}

/** Everything about one finding. */
function detail(model, record, several) {
  const kind = model.data.kinds[record.kind];
  const facts = [["Fingerprint", h("code", {}, record.fingerprint)]];
  if (several) {
    const process = model.data.processes[record.process];
    facts.push(["Process", `${process.name} (${process.pid})`]);
  }
  if (record.run) {
    const [allocated, blocks, freed, peak] = record.run;
    facts.push(["Allocated here", `${bytes(allocated)} in ${grouped(blocks)} blocks, ${grouped(freed)} freed`]);
    facts.push(["Peak", bytes(peak)]);
  }
  return h("div", { class: "detail" },
    h("p", { class: "title" }, record.title),
    h("p", { class: "help" }, `${kind.what} ${kind.help}`),
    h("dl", {}, facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
    stack(model, record.node, record.place),
    (record.more ?? []).map(([words, node]) => [h("h4", {}, words), stack(model, node, null)]));
}

function stack(model, node, place) {
  const frames = model.stack(node);
  // Source is shown at once where the eye goes first; else on demand.
  const at = place ? frames.findIndex((frame) => frame.file === place.file && frame.line === place.line) : -1;
  return h("ol", { class: "stack" }, frames.map((frame, number) => h("li", {}, step(model, frame, number === at))));
}

function step(model, frame, isOpen) {
  const words = [h("span", { class: "function" }, frame.name), " ",
    frame.file ? h("span", { class: "file" }, `${frame.file}${frame.line ? `:${frame.line}` : ""}`) : frame.module && h("span", { class: "file" }, `in ${fileName(frame.module)}`)];
  const lines = frame.line ? around(model.sources.get(frame.file), frame.line) : [];
  if (lines.length === 0) return words;
  return h("details", { open: isOpen }, h("summary", {}, words),
    h("pre", { class: "source", tabindex: "0", "aria-label": `Source of ${frame.file}` }, lines.map(([number, text]) =>
      h("span", { class: number === frame.line ? "line here" : "line", "aria-current": number === frame.line ? "location" : null },
        h("span", { class: "lineno" }, String(number)), text, "\n"))));
}

/** The lines around a place that the page has, without gaps. */
function around(lines, line) {
  const found = [];
  if (!lines?.has(line)) return found;
  let first = line;
  while (lines.has(first - 1) && line - first < 4) first -= 1;
  for (let number = first; lines.has(number) && number <= line + 4; number++) found.push([number, lines.get(number)]);
  return found;
}
