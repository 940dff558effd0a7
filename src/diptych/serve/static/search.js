// The search page: what is searched for, the request, and the parts of the page.
import { $, announce, api, copyButton, counted, el, hear, icon, number, recall, remember } from "/static/dom.js";
import { closable, incoming, setUp, singleKey } from "/static/page.js";
import { chooseCrop } from "/static/crop.js";
import { Detail } from "/static/detail.js";
import { filterChips, makeFilters, writeFilters } from "/static/filters.js";
import { CollectionMap } from "/static/map.js";
import { cut, load, loadId } from "/static/picture.js";
import { Results, titleOf } from "/static/results.js";
import { bodyOf, empty, filtered, hashOf, listed, negatives, stateOf, wanted } from "/static/state.js";

const PAGE = 60; // pictures that one request brings
const MARKED = 12; // best hits that the map marks
const known = new Map(); // facts of pictures by id
let index = { can: [], models: [] };
let state = empty();
let answer = null; // of the last search
let asked = null; // its AbortController
let depth = 0; // pages of this visit behind an open picture

const fromServer = async (id) => {
  if (!known.get(id)?.complete) known.set(id, { ...known.get(id), ...(await api(`/v1/pictures/${id}`)), complete: true });
  return known.get(id);
};
/** What is known of a picture; how well it fits, only if it is among the present hits. */
const hitOf = (id) => results.hits.find((hit) => hit.id === id) || (known.has(id) ? { ...known.get(id), score: null, relevance: null, duplicates: [] } : undefined);
const link = (id) => `/#${hashOf({ ...state, open: id })}`;
const can = (what) => index.can.includes(what);

// ---- the parts -------------------------------------------------------------------------------------------------------------

const results = new Results($("list"), { open: (id) => openPicture(id), more: (hit) => alike(hit, "like"), less: (hit) => alike(hit, "unlike"), picked: showPicked, facts: fromServer, link, single: singleKey });

let around = []; // the ids among which the arrows of an open picture go
const detail = new Detail({
  facts: fromServer,
  failed: (error) => { state.open = null; problem(error); },
  step: (by, test = false) => {
    const ids = around.length ? around : results.hits.map((hit) => hit.id), at = ids.indexOf(state.open), to = at < 0 ? undefined : ids[at + by];
    if (test || to === undefined) return to !== undefined;
    state.open = to;
    history.replaceState(history.state, "", `#${hashOf(state)}`);
    detail.show(to, hitOf(to));
    return true;
  },
  more: (hit) => { leave(); alike(hit, "like"); },
  less: (hit) => { leave(); alike(hit, "unlike"); },
  crop: (hit) => chooseCrop(`/picture/${hit.id}`, state.crop && state.like[0] === hit.id ? state.crop : null, (part) => { leave(); go({ ...empty(), filters: state.filters, like: [hit.id], crop: part }); }),
  link,
  pick: (id) => { if (results.picked.has(id)) results.picked.delete(id); else results.picked.set(id, titleOf(known.get(id))); results.marks(); },
  picked: (id) => results.picked.has(id),
  chat: null,
  closed: () => {
    if (state.open === null) return;
    const id = state.open;
    state.open = null;
    around = [];
    if (depth > 0) { depth -= 1; history.back(); } else history.replaceState(history.state, "", `#${hashOf(state)}`);
    const tile = document.querySelector(`.tile[data-id="${id}"]`);
    if (tile) { results.activate(tile); tile.querySelector("a").focus(); }
  },
});

/** Closes the open picture on the way to another search. */
function leave() {
  state.open = null;
  depth = 0;
  detail.close();
}

const map = new CollectionMap($("map"), { open: (id, ids) => openPicture(id, ids), hits: () => (wanted(state) ? results.hits.slice(0, MARKED).map((hit) => hit.id) : []), link, title: (id) => (known.has(id) ? titleOf(known.get(id)) : `Picture ${id}`) });

// ---- going to a search -----------------------------------------------------------------------------------------------------

/** A new search: into the history of the browser, onto the page. */
function go(next) {
  const again = same(state, next) && state.open === null;
  state = { ...next, open: null };
  const key = keep(state.picture);
  history[again ? "replaceState" : "pushState"]({ key, crop: key ? state.crop : null }, "", `#${hashOf(state)}`);
  run();
}

/** Whether two states are the same search. */
const same = (a, b) => hashOf({ ...a, open: null }) === hashOf({ ...b, open: null }) && a.picture === b.picture && String(a.crop) === String(b.crop);

/** A picture stays in this tab, never in the address. */
const pictures = new Map();
function keep(picture) {
  if (!picture) return null;
  const key = [...pictures].find(([, held]) => held === picture)?.[0] || String(Date.now());
  pictures.set(key, picture);
  remember("diptych-picture", { key, picture });
  return key;
}

function restore() {
  state = stateOf(location.hash);
  const key = history.state?.key;
  if (key) {
    const last = recall("diptych-picture");
    state.picture = pictures.get(key) || (last?.key === key ? last.picture : null);
    if (state.picture) { pictures.set(key, state.picture); state.crop = history.state.crop ?? null; }
  }
}

addEventListener("popstate", () => {
  const before = state;
  restore();
  if (state.open === null) { depth = 0; detail.close(); }
  if (!same(before, state)) run();
  else if (state.open !== null) detail.show(state.open, hitOf(state.open));
});

function openPicture(id, ids = []) {
  around = ids;
  state.open = id;
  depth = 1;
  history.pushState(history.state, "", `#${hashOf(state)}`);
  detail.show(id, hitOf(id));
}

/** More or less like a picture: it joins what is wanted, or what is not. */
async function alike(hit, list) {
  const other = list === "like" ? "unlike" : "like", next = { ...state, [list]: [...state[list].filter((id) => id !== hit.id), hit.id].slice(-32), [other]: state[other].filter((id) => id !== hit.id) };
  known.set(hit.id, { ...known.get(hit.id), ...hit });
  if (list === "like" && state.crop && !state.picture && state.like.length) { // a part of one picture, and another one: the first goes along as a picture
    try { next.picture = await loadId(state.like[0], titleOf(known.get(state.like[0]) || hit)); } catch (error) { problem(error); return; }
    next.like = [hit.id];
  }
  if (!next.like.length && !next.picture) next.crop = null;
  if (list === "unlike" && !wanted(next)) { announce("Search for something first; then pictures can be less like this one"); status("Search for something first; then “less like this” takes away from it."); return; }
  announce(list === "like" ? "More like this" : "Less like this");
  go(next);
}

// ---- the request -----------------------------------------------------------------------------------------------------------

function status(text) { $("status").textContent = text; }

function problem(error) {
  if (error.name === "AbortError") return;
  $("problem").textContent = error.message || String(error);
  $("problem").hidden = false;
  status("");
}

async function fetchHits(offset, cutoff = true) {
  asked?.abort();
  asked = new AbortController();
  const { signal } = asked, body = { ...bodyOf(state, PAGE, offset), cutoff };
  if (index.rerank && !$("again").checked) body.rerank = false;
  if (body.crop && body.image && body.like?.length === 1) { // of which of the two, a request could not say
    body.image = await cut(state.picture, body.crop);
    delete body.crop;
  }
  const found = await api("/v1/search", { body, signal });
  for (const hit of found.hits) known.set(hit.id, { ...known.get(hit.id), ...hit });
  return found;
}

async function run() {
  showQuery();
  for (const id of ["problem", "nothing", "welcome", "next", "select-all"]) $(id).hidden = true;
  document.body.classList.toggle("start", !wanted(state) && !filtered(state) && state.view === "grid");
  const slow = setTimeout(() => status("Searching …"), 250);
  $("main").setAttribute("aria-busy", "true");
  try {
    answer = await fetchHits(0);
    if (answer.nothing && wanted(state) && answer.total) showNothing();
    else showHits();
    if (state.open !== null) detail.show(state.open, hitOf(state.open));
  } catch (error) {
    if (error.name === "AbortError") return;
    results.clear();
    problem(error);
  } finally {
    clearTimeout(slow);
    $("main").removeAttribute("aria-busy");
  }
  showView();
}

const took = () => (answer.took_ms < 10 ? answer.took_ms.toFixed(1) : Math.round(answer.took_ms));

function showHits(far = false) {
  const ranked = wanted(state);
  $("nothing").hidden = !far;
  $("nearest").hidden = true;
  results.show(answer.hits, { ranked, far });
  const among = filtered(state) ? "that pass the filters" : "";
  if (!answer.hits.length) status(filtered(state) ? "No picture passes the filters." : "There are no pictures yet.");
  else if (ranked) status(`${far ? "The nearest" : "The best"} of ${counted(answer.total, "picture")} ${among} · ${took()} ms`.replace("  ", " "));
  else status(`${counted(answer.total, "picture")} ${among} · ${took()} ms`.replace("  ", " "));
  if (answer.reranked) status(`${$("status").textContent} · judged by ${index.rerank}`);
  $("select-all").hidden = !answer.hits.length || !(ranked || filtered(state));
  showMore();
  if (!ranked && !filtered(state)) welcome();
}

function showNothing() {
  results.clear();
  $("nothing-title").textContent = "Nothing here looks like that";
  const reason = (answer.reason || "").replace(/^nothing here looks like that[:.]?\s*/i, "");
  const why = reason ? `${reason[0].toUpperCase()}${reason.slice(1).replace(/\.$/, "")}.` : `The best of ${counted(answer.total, "picture")} fits no better than pictures that have nothing to do with it.`;
  $("nothing-why").textContent = why;
  $("nothing").hidden = false;
  $("nearest").hidden = !answer.total;
  status(`Nothing here looks like that · ${took()} ms`);
}

$("nearest").addEventListener("click", async () => {
  try {
    if (!answer.hits.length) answer = { ...(await fetchHits(0, false)), nothing: true };
    showHits(true);
    $("list").querySelector("a")?.focus();
  } catch (error) { problem(error); }
});

function showMore() {
  const shown = results.hits.filter((hit) => !hit.copy).length;
  $("next").hidden = answer.hits.length < PAGE || shown >= answer.total || state.view === "map";
}

$("next").addEventListener("click", async () => {
  const button = $("next");
  button.disabled = true;
  try {
    const offset = results.hits.filter((hit) => !hit.copy).length, far = answer.nothing;
    answer = { ...(await fetchHits(offset, !far)), nothing: far };
    const first = results.append(answer.hits);
    announce(`${counted(answer.hits.length, "more picture")}`);
    if (first) { results.activate(first); first.querySelector("a").focus({ preventScroll: true }); }
    showMore();
  } catch (error) { problem(error); } finally { button.disabled = false; }
});

/** The start page: how many pictures there are, the latest below. */
function welcome() {
  $("welcome").replaceChildren(el("h2", {}, `Search ${counted(answer.total, "picture")}`), el("p", {}, can("text") ? "Describe one, or drop a picture here." : "Drop a picture here: this model compares pictures alone."));
  $("welcome").hidden = false;
}

// ---- the query -------------------------------------------------------------------------------------------------------------

$("query").addEventListener("submit", (event) => {
  event.preventDefault();
  const { text, not } = negatives($("text").value), more = listed($("not").value);
  $("not").value = "";
  go({ ...state, text, not: [...new Set([...state.not, ...not, ...more])], view: state.view });
});

function chip(label, remove, { picture, crop, without } = {}) {
  return el("li", { class: without ? "chip without" : "chip" }, picture ? el("img", { src: picture, alt: "" }) : null, el("span", { dir: "auto", title: label }, label),
    crop ? el("button", { type: "button", title: "Part of it", onclick: crop }, icon("crop"), hear(`Choose a part of: ${label}`)) : null,
    el("button", { type: "button", title: "Remove", onclick: remove }, icon("close"), hear(`Remove: ${label}`)));
}

/** Shows the query: words in the box, everything else as chips. */
function showQuery() {
  document.title = `${state.text || (wanted(state) ? "Pictures" : "Search")} – Diptych`;
  $("text").value = state.text;
  const name = (id) => (known.has(id) ? titleOf(known.get(id)) : `picture ${id}`), part = state.crop ? "part of " : "";
  const chips = [];
  if (state.picture) chips.push(chip(`${part}${state.picture.name}`, () => go({ ...state, picture: null, crop: null }), { picture: state.picture.url, crop: () => chooseCrop(state.picture.url, state.crop, (crop) => go({ ...state, crop })) }));
  for (const id of state.like) {
    const alone = state.like.length === 1 && !state.picture;
    chips.push(chip(`${alone ? part : ""}like ${name(id)}`, () => go({ ...state, like: state.like.filter((each) => each !== id), crop: alone ? null : state.crop }),
      { picture: `/thumb/${id}?s=64`, crop: alone ? () => chooseCrop(`/picture/${id}`, state.crop, (crop) => go({ ...state, crop })) : null }));
  }
  for (const id of state.unlike) chips.push(chip(`not like ${name(id)}`, () => go({ ...state, unlike: state.unlike.filter((each) => each !== id) }), { picture: `/thumb/${id}?s=64`, without: true }));
  for (const word of state.not) chips.push(chip(`without ${word}`, () => go({ ...state, not: state.not.filter((each) => each !== word) }), { without: true }));
  for (const [label, rest] of filterChips(state.filters)) chips.push(chip(label, () => go({ ...state, filters: rest() })));
  if (chips.length > 1) chips.push(el("li", {}, el("button", { type: "button", class: "quiet", onclick: () => { go({ ...empty(), view: state.view }); $("text").focus(); } }, "Remove all")));
  const within = $("chips").contains(document.activeElement);
  $("chips").replaceChildren(...chips);
  $("chips").hidden = !chips.length;
  if (within) ($("chips").querySelector("button") || $("text")).focus();
  writeFilters($("filters"), state.filters);
}

incoming(async ([file]) => {
  try {
    const picture = await load(file);
    announce(`Searching with ${picture.name}`);
    go({ ...state, picture, crop: null, like: state.crop ? [] : state.like });
  } catch (error) { problem(error); }
});

$("filter-button").addEventListener("click", () => {
  const shown = $("filters").hidden;
  $("filters").hidden = !shown;
  $("filter-button").setAttribute("aria-expanded", String(shown));
  if (shown) $("filters").querySelector("input, select")?.focus();
});

// ---- grid and map ----------------------------------------------------------------------------------------------------------

async function showView() {
  const asMap = state.view === "map";
  $("as-grid").setAttribute("aria-pressed", String(!asMap));
  $("as-map").setAttribute("aria-pressed", String(asMap));
  $("list").hidden = asMap;
  if (asMap) {
    $("welcome").hidden = $("next").hidden = $("select-all").hidden = true;
    try { await map.show(); } catch (error) { map.hide(); problem(error); }
  } else map.hide();
}

for (const [id, view] of [["as-grid", "grid"], ["as-map", "map"]]) $(id).addEventListener("click", () => { if (state.view !== view) go({ ...state, view }); });

// ---- selection -------------------------------------------------------------------------------------------------------------

function showPicked(count) {
  $("selection").hidden = !count;
  $("picked").textContent = `${number(count)} selected`;
  document.body.classList.toggle("picking", count > 0);
}

$("select-all").addEventListener("click", () => { results.pickAll(); announce(`${results.picked.size} selected`); });
$("unpick").addEventListener("click", () => { results.unpick(); announce("Nothing is selected"); $("text").focus(); });
$("compare-chat").addEventListener("click", () => toChat([...results.picked.keys()]));
closable($("save"));

function toChat(ids) {
  remember("diptych-chat-pictures", ids.slice(0, 8));
  location.assign("/chat");
}

$("export").addEventListener("click", () => {
  const name = el("input", { id: "save-name", required: true, maxlength: "64", pattern: "[\\w][\\w .\\-]*", value: (state.text || "selection").replace(/[^\w .-]+/g, " ").trim().slice(0, 60) || "selection", "aria-describedby": "save-how" });
  const out = el("div", { role: "status" }), count = results.picked.size;
  const form = el("form", { class: "inner", onsubmit: async (event) => {
    event.preventDefault();
    try {
      const made = await api("/v1/selections", { body: { name: name.value.trim(), ids: [...results.picked.keys()] } });
      out.replaceChildren(el("div", { class: "inner" }, el("h3", {}, "Its address as a data set"), el("pre", { id: "address" }, made.address), el("div", { class: "row" }, copyButton(made.address, "Copy the address")),
        el("h3", {}, "For example"), el("pre", { id: "command" }, made.command), el("div", { class: "row" }, copyButton(made.command, "Copy the command"))));
    } catch (error) { out.replaceChildren(el("p", { class: "warned" }, error.message)); }
  } },
    el("p", { class: "note", id: "save-how" }, `${counted(count, "picture")}, kept in the index under a name: letters, digits, spaces, points and hyphens. Training and curation read them from there.`),
    el("div", { class: "field" }, el("label", { for: "save-name" }, "Name"), name), el("div", { class: "row" }, el("button", { type: "submit", class: "main" }, "Keep the selection")), out);
  $("save").replaceChildren(el("div", { class: "head" }, el("h2", { id: "save-title" }, "Use as a data set"), el("button", { type: "button", class: "round", "data-close": true }, icon("close"), hear("Close"))), form);
  $("save").showModal();
  name.select();
});

// ---- begin -----------------------------------------------------------------------------------------------------------------

async function begin() {
  setUp("text");
  restore();
  if (location.pathname === "/map") state.view = "map";
  showPicked(results.picked.size);
  try {
    index = { can: [], models: [], ...(await api("/v1/index")) };
    if (index.rerank) {
      $("again-name").textContent = `judge again by ${index.rerank}`;
      $("again-label").hidden = false;
      $("again").addEventListener("change", run);
    }
  } catch (error) { problem(error); return; }
  const talks = index.models.some((model) => (model.can || []).some((what) => what === "chat" || what === "caption"));
  $("to-chat").hidden = !talks;
  if (talks) { detail.actions.chat = toChat; $("compare-chat").hidden = false; }
  if (!can("text")) $("text").placeholder = "This model compares pictures alone";
  if (!can("image")) $("add-picture").hidden = true;
  makeFilters($("filters"), index, (filters) => go({ ...state, filters }), () => go({ ...state, filters: {} }));
  $("filter-button").hidden = false;
  await run();
  if (!matchMedia("(hover: none)").matches && state.open === null && document.activeElement === document.body) $("text").focus();
}

begin();
