// The turns of a conversation on the page, and in the form in which the API and the data sources read them.
import { $, copyButton, el, hear, icon } from "/static/dom.js";
import { drawing, nodesOf, settled } from "/static/boxes.js";
import { whereForm } from "/static/where.js";

/** The content of messages as parts. */
const partsOf = (content) => (typeof content === "string" ? [{ type: "text", text: content }] : content);

/** Turns as `messages`: texts, pictures and clips as data URLs. What failed is left out; questions in a row, since one failed, are one message.
 * complete: without a question at the end that has no answer. */
export function messagesOf(turns, system = "", complete = false) {
  const messages = system ? [{ role: "system", content: system }] : [];
  for (const turn of turns) {
    if (turn.error || turn.busy || (turn.role === "assistant" && !turn.text)) continue;
    let content = turn.text;
    if (turn.pictures?.length) {
      content = turn.pictures.map((picture) => (picture.clip ? { type: "video_url", video_url: { url: picture.clip } } : { type: "image_url", image_url: { url: picture.url } }));
      if (turn.text) content.push({ type: "text", text: turn.text });
    }
    const last = messages.at(-1);
    if (last?.role === turn.role) last.content = [...partsOf(last.content), ...partsOf(content)];
    else messages.push({ role: turn.role, content });
  }
  if (complete && messages.length > 1 && messages.at(-1).role === "user") messages.pop();
  return messages;
}

/** The last picture before an answer: boxes are drawn on it. */
const pictureBefore = (turns, at) => turns.slice(0, at).reverse().flatMap((turn) => (turn.pictures || []).filter((picture) => !picture.clip).slice(-1))[0] || null;

/** Tokens, seconds and tokens per second of an answer. */
export function figures({ tokens, seconds, rate, model, stopped, note }) {
  const parts = [];
  if (model) parts.push(model);
  if (tokens) parts.push(`${tokens} ${tokens === 1 ? "token" : "tokens"}`);
  if (rate) parts.push(`${rate < 10 ? rate.toFixed(1) : Math.round(rate)} tokens/s`);
  if (seconds) parts.push(`${seconds.toFixed(1)} s`);
  if (stopped) parts.push("stopped");
  if (note) parts.push(note);
  return parts.join(" · ");
}

/** The list of turns. actions: again(at), edit(at, text), busy(). */
export class Turns {
  constructor(root, actions) {
    this.root = root;
    this.actions = actions;
  }

  show(turns) {
    this.root.replaceChildren(...turns.map((turn, at) => this.node(turns, turn, at)));
    $("blank").hidden = turns.length > 0;
  }

  /** Draws one turn anew. While an answer arrives, only its text changes. */
  update(turns, at) {
    const old = this.root.children[at], turn = turns[at];
    if (!old) { this.show(turns); return; }
    if (turn.busy) {
      const says = old.querySelector(".says");
      if (says) { says.replaceChildren(...nodesOf(settled(turn.text))); return; }
    }
    old.replaceWith(this.node(turns, turn, at));
  }

  node(turns, turn, at) {
    const mine = turn.role === "user", name = mine ? "You" : turn.error ? "Error" : turn.figures?.model || "The model";
    const says = el("div", { class: turn.busy ? "says busy" : "says", dir: "auto" }, turn.error ? turn.error : nodesOf(turn.busy ? settled(turn.text) : turn.text));
    const item = el("li", { class: `turn ${turn.role}${turn.error ? " error" : ""}` }, hear(`${name}: `));
    if (turn.pictures?.length) {
      item.append(el("ul", { class: "shots" }, turn.pictures.map((picture) => el("li", {}, el("button", { type: "button", onclick: () => enlarge(picture) }, el("img", { src: picture.url, alt: picture.name }), hear(", show larger"))))));
    }
    if (turn.text || turn.error || turn.busy) item.append(says);
    if (!turn.busy && !mine && !turn.error) { const boxes = drawing(turn.text, pictureBefore(turns, at)); if (boxes) item.append(boxes); }
    if (!turn.busy) item.append(this.foot(turn, at, mine, item));
    return item;
  }

  foot(turn, at, mine, item) {
    const act = (label, symbol, run) => el("button", { type: "button", class: "quiet", onclick: run }, icon(symbol), label);
    return el("div", { class: "foot" }, turn.figures ? el("span", {}, figures(turn.figures)) : null,
      turn.text ? copyButton(turn.text, "Copy", { class: "quiet" }) : null,
      mine ? act("Edit", "edit", () => this.edit(turn, at, item)) : act(turn.error ? "Try again" : "Again", "again", () => this.actions.again(at)));
  }

  /** A message becomes a field; sending it drops what came after. */
  edit(turn, at, item) {
    if (this.actions.busy()) return;
    const field = el("textarea", { rows: "3", "aria-label": "Your message" });
    field.value = turn.text;
    const end = () => { form.replaceWith(this.node([turn], turn, at)); };
    const form = el("li", { class: "turn user" }, el("form", { class: "redo", onsubmit: (event) => { event.preventDefault(); this.actions.edit(at, field.value.trim()); } },
      turn.pictures?.length ? el("ul", { class: "shots" }, turn.pictures.map((picture) => el("li", {}, el("img", { src: picture.url, alt: picture.name })))) : null,
      field, el("div", { class: "row" }, el("button", { type: "button", class: "plain", onclick: () => this.cancel?.() }, "Cancel"), el("button", { type: "submit", class: "main" }, "Ask again"))));
    this.cancel = end;
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { event.preventDefault(); event.stopPropagation(); end(); $("text").focus(); }
      else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); form.firstElementChild.requestSubmit(); }
    });
    item.replaceWith(form);
    field.focus();
  }
}

/** A picture or a clip in a dialog. */
export function enlarge(picture) {
  const dialog = $("large");
  dialog.replaceChildren(el("div", { class: "head" }, el("h2", { id: "large-title", dir: "auto" }, picture.name), el("button", { type: "button", class: "round", "data-close": true }, icon("close"), hear("Close"))),
    el("div", { class: "inner" }, picture.clip ? el("video", { src: picture.clip, controls: true, loop: true, "aria-label": picture.name }) : el("img", { src: picture.url, alt: picture.name }), picture.clip ? null : whereForm(picture)));
  dialog.showModal();
}
