// Elements, requests and small things that every page needs. Text from data only ever becomes a text node.

export const $ = (id) => document.getElementById(id);

/** A new element. Attributes: `class`, `on…` listeners, booleans, anything else as it is; children: nodes, texts, null. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const SVG = "http://www.w3.org/2000/svg";

/** An element of SVG. */
export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** A symbol of icons.svg. */
export const icon = (name) => svg("svg", { class: "icon", "aria-hidden": "true" }, svg("use", { href: `/static/icons.svg#${name}` }));

/** A text for screen readers alone. */
export const hear = (text) => el("span", { class: "hear" }, text);

/** Direction of a text is its own: a caption in Hebrew within an English page. */
export const own = (tag, text, attributes = {}) => el(tag, { dir: "auto", ...attributes }, text);

/** Says something to screen readers. */
export function announce(text) {
  const live = $("live");
  live.textContent = "";
  setTimeout(() => { live.textContent = text; }, 30);
}

/** An answer of the server that is an error. */
export class Problem extends Error {
  constructor(message, status = 0, param = null) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

/** The answer to a request; a `Problem` with a plain message otherwise. Without a valid token, on to the form for it. */
export async function answerTo(path, { body, signal, method } = {}) {
  const options = { method: method || (body === undefined ? "GET" : "POST"), signal, credentials: "same-origin", headers: { Accept: "application/json" } };
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers["Content-Type"] = "application/json";
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server does not answer. Is diptych serve still running?");
  }
  if (answer.ok) return answer;
  if (answer.status === 401) {
    remember("diptych-next", location.pathname + location.hash);
    location.assign("/login");
  }
  let message = `The server answered with status ${answer.status}.`, param = null;
  try {
    const { error } = await answer.json();
    if (error && typeof error.message === "string") message = error.message;
    param = error && error.param;
  } catch { /* no JSON: the status has to do */ }
  const wait = answer.headers.get("Retry-After");
  if (answer.status === 429 && wait && !message.includes("try again")) message += `. Try again in ${wait} s.`;
  throw new Problem(message, answer.status, param);
}

/** The JSON of an answer. */
export const api = async (path, options) => (await answerTo(path, options)).json();

/** Keeps a value for this tab; a full or closed storage is no error. */
export function remember(key, value) {
  try {
    if (value === null || value === undefined) sessionStorage.removeItem(key);
    else sessionStorage.setItem(key, typeof value === "string" ? value : JSON.stringify(value));
    return true;
  } catch { return false; }
}

/** What this tab keeps, as JSON; null if there is nothing that can be read. */
export function recall(key) {
  try { return JSON.parse(sessionStorage.getItem(key)); } catch { return null; }
}

/** A setting of this browser: read without a value, else written. */
export function setting(key, value) {
  try {
    if (value === undefined) return localStorage.getItem(key);
    localStorage.setItem(key, value);
  } catch { /* storage is closed: the default */ }
  return null;
}

/** Copies a text and says so. */
export async function copy(text, what = "Copied") {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // no permission, or a page without TLS on another host: the old way
    const area = el("textarea", { class: "hear", "aria-hidden": "true", tabindex: "-1" });
    area.value = text;
    (document.querySelector("dialog[open]") || document.body).append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  announce(what);
}

/** A button that copies a text, and says for a moment that it did. */
export function copyButton(text, label = "Copy", attributes = { class: "plain" }) {
  const word = el("span", {}, label);
  return el("button", { type: "button", ...attributes, onclick: async () => {
    await copy(typeof text === "function" ? text() : text);
    word.textContent = "Copied";
    setTimeout(() => { word.textContent = label; }, 1500);
  } }, icon("copy"), word);
}

/** Saves a text as a file. */
export function download(name, text, type = "application/json") {
  const url = URL.createObjectURL(new Blob([text], { type }));
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

const NUMBERS = new Intl.NumberFormat("en");
export const number = (value) => NUMBERS.format(value);

/** "1 picture", "2,000 pictures". */
export const counted = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;

/** Bytes in words. */
export function size(bytes) {
  if (!bytes) return "";
  const step = bytes < 1e6 ? [1e3, "kB"] : [1e6, "MB"];
  return bytes < 1000 ? `${bytes} bytes` : `${(bytes / step[0]).toFixed(bytes / step[0] < 10 ? 1 : 0)} ${step[1]}`;
}
