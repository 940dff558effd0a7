// What is searched for: its form in memory, in the address of the page, and in a request.
// The address holds words, ids, filters and the corners of a crop; never a picture and never a token.

/** A search for nothing yet. picture: {name, url, width, height}; crop: [left, top, right, bottom] in 0..1. */
export const empty = () => ({ text: "", not: [], like: [], unlike: [], picture: null, crop: null, filters: {}, view: "grid", open: null });

/** Words, and those after a minus: `beach -people -"two dogs"`. A hyphen within a word is none. */
export function negatives(text) {
  const not = [];
  const rest = text.replace(/(^|\s)[-−](?:"([^"]+)"|([^\s"-][^\s"]*))/g, (_, before, phrase, word) => { not.push((phrase || word).trim()); return before; });
  return { text: rest.replace(/\s+/g, " ").trim(), not };
}

/** Several entries between commas. */
export const listed = (text) => text.split(",").map((part) => part.trim()).filter(Boolean);

/** Whether anything is wanted; filters alone show pictures in their order. */
export const wanted = (state) => Boolean(state.text || state.like.length || state.picture);
export const filtered = (state) => Object.keys(state.filters).length > 0;

const PLAIN = ["folder", "since", "until", "words"];
const SIZES = ["min_width", "min_height", "max_width", "max_height"];
const ids = (text) => (text || "").split(",").filter((part) => /^\d{1,15}$/.test(part)).map(Number);

/** The part of the address after "#". */
export function hashOf(state) {
  const query = new URLSearchParams();
  if (state.text) query.set("q", state.text);
  state.not.forEach((word) => query.append("not", word));
  if (state.like.length) query.set("like", state.like.join());
  if (state.unlike.length) query.set("unlike", state.unlike.join());
  if (state.crop && !state.picture) query.set("crop", state.crop.map((part) => part.toFixed(3)).join());
  for (const name of [...PLAIN, ...SIZES]) if (state.filters[name] !== undefined) query.set(name, state.filters[name]);
  for (const [name, value] of Object.entries(state.filters.columns || {})) {
    if (Array.isArray(value)) value.forEach((each) => query.append(`c.${name}`, JSON.stringify(each)));
    else if (value !== null && typeof value === "object") for (const [end, bound] of Object.entries(value)) query.set(`${end}.${name}`, bound);
    else query.set(`c.${name}`, JSON.stringify(value));
  }
  if (state.view !== "grid") query.set("view", state.view);
  if (state.open !== null) query.set("id", state.open);
  return query.toString();
}

/** A value of a column in an address: JSON, or a text as it stands. */
function valueOf(text) {
  try {
    const value = JSON.parse(text);
    return ["string", "number", "boolean"].includes(typeof value) ? value : text;
  } catch { return text; }
}

/** The search of an address. What is malformed in it is left out. */
export function stateOf(hash) {
  const state = empty(), query = new URLSearchParams(hash.replace(/^#/, "")), columns = {};
  state.text = query.get("q") || "";
  state.not = query.getAll("not");
  state.like = ids(query.get("like"));
  state.unlike = ids(query.get("unlike"));
  const crop = (query.get("crop") || "").split(",").map(Number);
  if (crop.length === 4 && crop.every((part) => part >= 0 && part <= 1) && crop[0] < crop[2] && crop[1] < crop[3] && state.like.length === 1) state.crop = crop;
  for (const name of PLAIN) if (query.get(name)) state.filters[name] = query.get(name);
  for (const name of SIZES) if (/^\d{1,6}$/.test(query.get(name) || "")) state.filters[name] = Number(query.get(name));
  for (const [key, value] of query) {
    const [, kind, name] = /^(c|min|max)\.(.+)$/.exec(key) || [];
    if (kind === "c") columns[name] = [...(columns[name] || []), valueOf(value)];
    else if (kind && Number.isFinite(Number(value))) columns[name] = { ...columns[name], [kind]: Number(value) };
  }
  for (const [name, value] of Object.entries(columns)) if (Array.isArray(value) && value.length === 1) columns[name] = value[0];
  if (Object.keys(columns).length) state.filters.columns = columns;
  if (query.get("view") === "map") state.view = "map";
  if (/^\d{1,15}$/.test(query.get("id") || "")) state.open = Number(query.get("id"));
  return state;
}

/** The body of POST /v1/search. */
export function bodyOf(state, n, offset) {
  const body = { n, offset };
  if (state.text) body.text = state.text;
  if (wanted(state)) { // without anything wanted, there is nothing to take away from
    if (state.not.length) body.not = state.not;
    if (state.unlike.length) body.not_like = state.unlike;
  }
  if (state.like.length) body.like = state.like;
  if (state.picture) body.image = state.picture.url;
  if (state.crop && (state.picture || state.like.length === 1)) body.crop = state.crop;
  if (filtered(state)) body.filters = state.filters;
  return body;
}
