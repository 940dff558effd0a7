// One picture, large, with its facts and what can be done with it.
import { $, announce, copyButton, counted, el, hear, icon, number, own, size } from "/static/dom.js";
import { closable } from "/static/page.js";
import { shortName, titleOf, worth } from "/static/results.js";

const date = (text) => {
  const when = new Date(text);
  if (!text || Number.isNaN(when.getTime())) return text || "";
  return when.toLocaleString("en-GB", { dateStyle: "long", timeStyle: text.length > 10 ? "short" : undefined });
};

/** The dialog. actions: facts(id), step(by) → id or null, more(hit), less(hit), crop(hit), link(id), chat(ids) or null, pick(id), picked(id), closed(). */
export class Detail {
  constructor(actions) {
    this.actions = actions;
    this.dialog = $("detail");
    this.hit = null;
    closable(this.dialog);
    this.dialog.addEventListener("close", () => { this.hit = null; this.dialog.replaceChildren(); actions.closed(); });
    this.dialog.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!by || event.target.matches("input, textarea") || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      actions.step(by);
    });
  }

  get open() { return this.dialog.open; }

  /** Shows a picture. hit: from a search, null: its facts are fetched. */
  async show(id, hit) {
    const begun = Symbol("show");
    this.begun = begun;
    const rest = this.actions.facts(id).catch((error) => { if (!hit) this.actions.failed(error); return null; });
    const facts = hit || (await rest);
    if (!facts || this.begun !== begun) return;
    const within = this.dialog.contains(document.activeElement) ? document.activeElement.dataset.act : null;
    this.hit = facts;
    this.fill(facts);
    if (!this.dialog.open) this.dialog.showModal();
    (this.dialog.querySelector(`[data-act="${within || "close"}"]:not(:disabled)`) || this.dialog.querySelector("[data-act=close]")).focus();
    const all = await rest; // what a hit does not hold, such as the size of the file
    if (all && hit && this.begun === begun && this.dialog.open) this.dialog.querySelector("dl").replaceWith(this.list({ ...all, ...hit }));
  }

  close() { if (this.dialog.open) this.dialog.close(); }

  fill(facts) {
    const { actions } = this, title = titleOf(facts), act = (name, label, symbol, run) => el("button", { type: "button", class: "plain", "data-act": name, onclick: run }, icon(symbol), label);
    const large = el("img", { src: `/picture/${facts.id}`, alt: title, width: facts.width || null, height: facts.height || null });
    if (facts.width) large.style.setProperty("--most", `${4 * facts.width}px`); // a tiny picture is not blown up further
    large.addEventListener("error", () => { if (!large.src.includes("/thumb/")) large.src = `/thumb/${facts.id}?s=1024`; }, { once: true });
    const step = (by, label, symbol) => el("button", { type: "button", class: "round step", "data-act": symbol, disabled: !actions.step(by, true), onclick: () => actions.step(by) }, icon(symbol), hear(label));
    const pick = el("button", { type: "button", class: "plain", "data-act": "pick", "aria-pressed": String(actions.picked(facts.id)), onclick: () => {
      actions.pick(facts.id);
      pick.setAttribute("aria-pressed", String(actions.picked(facts.id)));
      announce(actions.picked(facts.id) ? "Selected" : "Not selected");
    } }, "Select");
    this.dialog.replaceChildren(
      el("div", { class: "stage" }, large, step(-1, "Previous picture", "left"), step(1, "Next picture", "right")),
      el("div", { class: "facts" },
        el("button", { type: "button", class: "round close", "data-close": true, "data-act": "close" }, icon("close"), hear("Close")),
        own("h2", shortName(facts), { id: "detail-title" }),
        (facts.caption || "").split("\n").filter(Boolean).map((line) => own("p", line, { class: "caption" })),
        el("div", { class: "do" },
          act("more", "More like this", "more", () => actions.more(facts)), act("less", "Less like this", "less", () => actions.less(facts)),
          act("crop", "Part of it", "crop", () => actions.crop(facts)), pick,
          actions.chat ? act("chat", "Chat", "chat", () => actions.chat([facts.id])) : null,
          copyButton(() => new URL(actions.link(facts.id), location.href).href, "Copy link", { class: "plain", "data-act": "link" }),
          el("a", { class: "button", href: `/picture/${facts.id}`, download: shortName(facts), "data-act": "download" }, icon("download"), "Download"),
          act("print", "Print", "print", () => print())),
        this.list(facts),
        facts.duplicates?.length ? el("p", { class: "note" }, `${counted(facts.duplicates.length, "more picture")} nearly the same`) : null));
  }

  /** The facts of a picture as a list. */
  list(facts) {
    const rows = [["Name", facts.name], ["Folder", facts.folder], ["Size", facts.width ? `${number(facts.width)} × ${number(facts.height)}${facts.bytes ? `, ${size(facts.bytes)}` : ""}` : ""], ["Date", date(facts.date)],
      ...Object.entries(facts.columns || {}).map(([name, value]) => [name, typeof value === "object" && value !== null ? JSON.stringify(value) : value])];
    const fits = facts.score !== undefined && facts.score !== null ? worth(facts) : null;
    return el("dl", {}, fits ? [el("dt", {}, "Fits"), el("dd", {}, fits)] : null,
      rows.filter(([, value]) => value !== "" && value !== null && value !== undefined).map(([name, value]) => [own("dt", name), own("dd", String(value))]));
  }
}
