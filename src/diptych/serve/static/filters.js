// The form of filters, made from the facts of the index, and what each active filter is in words.
import { el, number } from "/static/dom.js";

const MANY = 12; // values of a column up to which each has a box of its own

const field = (id, label, control) => el("div", { class: "field" }, el("label", { for: id }, label), control);
const day = (text) => (text || "").slice(0, 10);

/** The values of a column, each with its number of pictures: lists, or {value: count}, where JSON makes texts of numbers. */
function valuesOf(facts) {
  if (!facts.values) return [];
  if (Array.isArray(facts.values)) return facts.values.map((value, at) => [value, facts.counts?.[at] ?? null]);
  const typed = (key) => (facts.type === "text" ? key : key === "true" ? true : key === "false" ? false : Number.isFinite(Number(key)) ? Number(key) : key);
  return Object.entries(facts.values).map(([key, count]) => [typed(key), count]);
}

function column(name, facts, at) {
  const id = `column-${at}`, values = valuesOf(facts), words = ([value, count]) => (count === null ? String(value) : `${value} (${number(count)})`);
  if (values.length && values.length <= MANY) {
    return el("fieldset", { class: "field", "data-column": name, "data-kind": "some" }, el("legend", { dir: "auto" }, name),
      el("div", { class: "ticks" }, values.map((each) => el("label", { dir: "auto" }, el("input", { type: "checkbox", "data-value": JSON.stringify(each[0]) }), words(each)))));
  }
  if (values.length) {
    const choice = el("select", { id, "data-column": name, "data-kind": "one" }, el("option", { value: "" }, "any"), values.map((each) => el("option", { value: JSON.stringify(each[0]) }, words(each))));
    return field(id, name, choice);
  }
  if (typeof facts.min === "number") {
    const bound = (end, label, hint) => el("input", { type: "number", step: "any", placeholder: String(hint), "aria-label": `${name}: ${label}`, "data-end": end });
    return el("fieldset", { class: "field", "data-column": name, "data-kind": "range" }, el("legend", { dir: "auto" }, name),
      el("div", { class: "two" }, bound("min", "at least", facts.min), bound("max", "at most", facts.max)));
  }
  return field(id, name, el("input", { id, "data-column": name, "data-kind": "text", placeholder: "exactly" }));
}

/** Fills the form. facts: of /v1/index. Returns whether there is anything to filter by. */
export function makeFilters(form, facts, apply, reset) {
  const folders = Array.isArray(facts.folders) ? facts.folders.filter(Boolean) : Object.keys(facts.folders || {});
  const [first, last] = Array.isArray(facts.dates) ? facts.dates : [facts.dates?.min, facts.dates?.max];
  const date = (name, label) => el("input", { type: "date", name, "aria-label": label, min: day(first) || null, max: day(last) || null });
  const parts = [el("h2", { class: "hear" }, "Filters")];
  if (folders.length) {
    parts.push(field("folder", "Folder", el("input", { id: "folder", name: "folder", list: "folders", placeholder: "all" })),
      el("datalist", { id: "folders" }, folders.slice(0, 500).map((folder) => el("option", { value: folder }))));
  }
  if (first) parts.push(el("fieldset", { class: "field" }, el("legend", {}, "Date: from, to"), el("div", { class: "two" }, date("since", "Date: from"), date("until", "Date: to"))));
  parts.push(el("fieldset", { class: "field" }, el("legend", {}, "At least: width, height (pixels)"),
    el("div", { class: "two" }, ["width", "height"].map((side) => el("input", { type: "number", name: `min_${side}`, min: "1", max: "999999", "aria-label": `At least so many pixels of ${side}` })))));
  if (facts.captions !== false) parts.push(field("words", "Words of the caption", el("input", { id: "words", name: "words", placeholder: "all of them" })));
  Object.entries(facts.columns || {}).forEach(([name, each], at) => parts.push(column(name, each, at)));
  parts.push(el("div", { class: "row" }, el("button", { type: "submit", class: "main" }, "Apply"), el("button", { type: "button", class: "plain", onclick: reset }, "Remove all filters")));
  form.replaceChildren(...parts);
  form.addEventListener("submit", (event) => { event.preventDefault(); apply(readFilters(form)); });
  form.addEventListener("change", (event) => { if (event.target.matches("[type=checkbox], select")) apply(readFilters(form)); });
}

/** The filters that the form holds. */
export function readFilters(form) {
  const filters = {}, columns = {};
  for (const name of ["folder", "since", "until", "words"]) {
    const value = form.elements[name]?.value.trim();
    if (value) filters[name] = value;
  }
  for (const name of ["min_width", "min_height"]) {
    const value = Number(form.elements[name]?.value);
    if (value > 0) filters[name] = Math.round(value);
  }
  for (const node of form.querySelectorAll("[data-column]")) {
    const { column: name, kind } = node.dataset;
    if (kind === "some") {
      const values = [...node.querySelectorAll("input:checked")].map((box) => JSON.parse(box.dataset.value));
      if (values.length) columns[name] = values.length === 1 ? values[0] : values;
    } else if (kind === "one") {
      if (node.value) columns[name] = JSON.parse(node.value);
    } else if (kind === "range") {
      const range = {};
      for (const bound of node.querySelectorAll("input")) if (bound.value !== "") range[bound.dataset.end] = Number(bound.value);
      if (Object.keys(range).length) columns[name] = range;
    } else if (node.value.trim()) columns[name] = node.value.trim();
  }
  if (Object.keys(columns).length) filters.columns = columns;
  return filters;
}

/** Shows filters in the form. */
export function writeFilters(form, filters) {
  for (const name of ["folder", "since", "until", "words", "min_width", "min_height"]) if (form.elements[name]) form.elements[name].value = filters[name] ?? "";
  for (const node of form.querySelectorAll("[data-column]")) {
    const value = filters.columns?.[node.dataset.column], kind = node.dataset.kind;
    if (kind === "some") for (const box of node.querySelectorAll("input")) box.checked = [value].flat().includes(JSON.parse(box.dataset.value));
    else if (kind === "one") node.value = value === undefined ? "" : JSON.stringify(value);
    else if (kind === "range") for (const bound of node.querySelectorAll("input")) bound.value = value?.[bound.dataset.end] ?? "";
    else node.value = value ?? "";
  }
}

/** Each active filter: [what it is in words, a function that gives the filters without it]. */
export function filterChips(filters) {
  const words = { folder: (v) => `in ${v}`, since: (v) => `from ${v}`, until: (v) => `to ${v}`, words: (v) => `caption: ${v}`, min_width: (v) => `width ≥ ${v}`, min_height: (v) => `height ≥ ${v}`, max_width: (v) => `width ≤ ${v}`, max_height: (v) => `height ≤ ${v}` };
  const chips = Object.keys(words).filter((name) => filters[name] !== undefined).map((name) => [words[name](filters[name]), () => without(filters, name)]);
  for (const [name, value] of Object.entries(filters.columns || {})) {
    let text = `${name}: ${[value].flat().join(", ")}`;
    if (value !== null && typeof value === "object" && !Array.isArray(value)) text = [value.min === undefined ? "" : `${name} ≥ ${value.min}`, value.max === undefined ? "" : `${name} ≤ ${value.max}`].filter(Boolean).join(", ");
    chips.push([text, () => { const columns = without(filters.columns, name); return Object.keys(columns).length ? { ...filters, columns } : without(filters, "columns"); }]);
  }
  return chips;
}

function without(object, key) {
  const rest = { ...object };
  delete rest[key];
  return rest;
}
