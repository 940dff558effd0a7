// The grid of pictures: tiles, keys, selection, folded duplicates.
import { announce, counted, el, hear, icon, own, recall, remember } from "/static/dom.js";

/** What a picture is called where no picture can be: its caption's first line, else its name. */
export const titleOf = (hit) => (hit.caption || "").split("\n")[0].trim() || hit.name;

/** The name without its folder. */
export const shortName = (hit) => hit.name.split("/").pop();

const ratioOf = (hit) => Math.min(2.4, Math.max(0.5, (hit.width || 1) / (hit.height || 1)));

/** How well a hit fits, in words, as the parts of a line. Without calibration it is the cosine, which has no fixed meaning. */
export function worth(hit) {
  if (hit.relevance === null || hit.relevance === undefined) {
    if (hit.score === null || hit.score === undefined) return null;
    return el("span", { class: "worth", title: "Cosine with the query; not calibrated" }, hear("cosine "), hit.score.toFixed(2));
  }
  const bar = el("i");
  bar.style.width = `${Math.round(100 * hit.relevance)}%`;
  const percent = hit.relevance > 0 && hit.relevance < 0.005 ? "< 1 %" : `${Math.round(100 * hit.relevance)} %`;
  return el("span", { class: "worth", title: `Relevance ${percent}; cosine ${hit.score?.toFixed(3)}` }, hear("relevance "), el("span", { class: "bar", "aria-hidden": "true" }, bar), percent);
}

/** The grid. actions: open(id), more(hit), less(hit), picked(count), facts(id) → facts, link(id) → address. */
export class Results {
  constructor(root, actions) {
    this.root = root;
    this.actions = actions;
    this.list = null;
    this.hits = []; // in the order of the tiles
    this.ranked = false; // whether anything was searched for
    this.picked = new Map(recall("diptych-selection") || []);
    this.last = null; // where a selection of several begins
    root.addEventListener("keydown", (event) => this.key(event));
    root.addEventListener("focusin", (event) => { const tile = event.target.closest(".tile"); if (tile) this.activate(tile); });
  }

  show(hits, { ranked, far = false }) {
    this.hits = [];
    this.ranked = ranked;
    this.last = null;
    this.list = el("ul", { class: far ? "grid far" : "grid", "aria-label": "Pictures" });
    this.root.replaceChildren(this.list);
    this.append(hits);
  }

  clear() {
    this.hits = [];
    this.list = null;
    this.root.replaceChildren();
  }

  append(hits) {
    const first = this.hits.length;
    for (const hit of hits) {
      this.hits.push(hit);
      this.list.append(this.tile(hit));
    }
    if (first === 0 && hits.length) this.activate(this.list.firstElementChild);
    return this.list.children[first];
  }

  tile(hit, copy = false) {
    const title = titleOf(hit), ranked = this.ranked;
    const picture = el("img", { src: `/thumb/${hit.id}?s=256`, srcset: `/thumb/${hit.id}?s=256 1x, /thumb/${hit.id}?s=512 2x`, alt: title, loading: "lazy", decoding: "async", draggable: "false" });
    const box = el("input", { type: "checkbox", tabindex: "-1", "aria-label": `Select ${title}`, onclick: (event) => { this.pick(hit.id, box.checked, event.shiftKey); } });
    box.checked = this.picked.has(hit.id);
    const button = (what, name, act) => el("button", { type: "button", tabindex: "-1", title: name, onclick: () => act(hit) }, icon(what), hear(`${name}: ${title}`));
    const tile = el("li", { class: copy ? "tile copy" : "tile", "data-id": hit.id },
      el("a", { class: "open", href: this.actions.link(hit.id), tabindex: "-1", onclick: (event) => this.click(event, hit.id) }, picture),
      el("div", { class: "over" },
        el("span", { class: "pick" }, box), button("more", "More like this", this.actions.more), button("less", "Less like this", this.actions.less)),
      el("div", { class: "line" }, own("span", hit.caption ? title : shortName(hit), { class: "name", title: hit.name }),
        !copy && hit.duplicates?.length ? this.same(hit) : null, ranked ? worth(hit) : null));
    tile.style.setProperty("--ratio", ratioOf(hit).toFixed(3));
    tile.classList.toggle("picked", box.checked);
    return tile;
  }

  /** The button that opens the duplicates of a hit, which then follow it in the grid. */
  same(hit) {
    const count = hit.duplicates.length;
    const label = `${counted(count, "more picture")} that ${count === 1 ? "is" : "are"} nearly the same as ${titleOf(hit)}`;
    const button = el("button", { type: "button", class: "same", tabindex: "-1", "aria-expanded": "false", "aria-label": label, title: label }, `+${count}`);
    button.addEventListener("click", async () => {
      const tile = button.closest(".tile");
      if (button.getAttribute("aria-expanded") === "true") {
        for (const id of hit.duplicates) this.list.querySelector(`.copy[data-id="${id}"]`)?.remove();
        this.hits = this.hits.filter((each) => !each.copy || !hit.duplicates.includes(each.id));
        button.setAttribute("aria-expanded", "false");
        return;
      }
      button.setAttribute("aria-expanded", "true");
      const facts = (await Promise.all(hit.duplicates.slice(0, 60).map((id) => this.actions.facts(id).catch(() => null)))).filter(Boolean);
      if (!tile.isConnected || button.getAttribute("aria-expanded") !== "true") return;
      const copies = facts.map((each) => ({ ...each, relevance: null, score: null, duplicates: [], copy: true }));
      this.hits.splice(this.hits.indexOf(hit) + 1, 0, ...copies);
      tile.after(...copies.map((each) => this.tile(each, true)));
      this.activate(tile);
      announce(`${counted(facts.length, "picture")} opened`);
    });
    return button;
  }

  /** One tile is in the order of Tab, with its buttons; arrows change which. */
  activate(tile) {
    for (const node of this.root.querySelectorAll('[tabindex="0"]')) node.tabIndex = -1;
    for (const node of tile.querySelectorAll("a, button, input")) node.tabIndex = 0;
  }

  click(event, id) {
    if (event.ctrlKey || event.metaKey || event.button) return; // a new tab
    event.preventDefault();
    if (event.shiftKey) this.pick(id, true, true);
    else if (this.actions.open) this.actions.open(id);
  }

  pick(id, on, range = false) {
    const at = this.hits.findIndex((hit) => hit.id === id), from = range && this.last !== null ? this.hits.findIndex((hit) => hit.id === this.last) : -1;
    const chosen = from >= 0 && at >= 0 ? this.hits.slice(Math.min(at, from), Math.max(at, from) + 1) : this.hits.filter((hit) => hit.id === id);
    for (const hit of chosen) if (on) this.picked.set(hit.id, titleOf(hit)); else this.picked.delete(hit.id);
    this.last = id;
    this.marks();
  }

  pickAll() {
    for (const hit of this.hits) this.picked.set(hit.id, titleOf(hit));
    this.marks();
  }

  unpick() {
    this.picked.clear();
    this.last = null;
    this.marks();
  }

  /** Shows what is selected, and keeps it for this tab. */
  marks() {
    for (const tile of this.root.querySelectorAll(".tile")) {
      const on = this.picked.has(Number(tile.dataset.id));
      tile.classList.toggle("picked", on);
      tile.querySelector(".pick input").checked = on;
    }
    remember("diptych-selection", this.picked.size ? [...this.picked] : null);
    this.actions.picked(this.picked.size);
  }

  /** The tile above or below: in the next row, the one whose middle is nearest. */
  beside(tile, down) {
    const box = tile.getBoundingClientRect(), middle = box.left + box.width / 2;
    let best = null;
    for (const other of this.list.children) {
      const its = other.getBoundingClientRect(), gap = down ? its.top - box.top : box.top - its.top;
      if (gap < 8) continue;
      const order = [gap, Math.abs(its.left + its.width / 2 - middle)];
      if (!best || order[0] < best.order[0] - 8 || (order[0] < best.order[0] + 8 && order[1] < best.order[1])) best = { order, other };
    }
    return best?.other;
  }

  key(event) {
    const tile = event.target.closest(".tile");
    if (!tile || event.altKey) return;
    const id = Number(tile.dataset.id), hit = this.hits.find((each) => each.id === id), onLink = event.target.matches("a");
    const to = {
      ArrowLeft: () => tile.previousElementSibling, ArrowRight: () => tile.nextElementSibling,
      ArrowUp: () => this.beside(tile, false), ArrowDown: () => this.beside(tile, true),
      Home: () => this.list.firstElementChild, End: () => this.list.lastElementChild,
    }[event.key];
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "a") {
      this.pickAll();
      announce(`${this.picked.size} selected`);
    } else if (event.ctrlKey || event.metaKey) return;
    else if (to) {
      const other = to();
      if (event.shiftKey && other) { if (this.last === null) this.last = id; this.pick(Number(other.dataset.id), true, true); announce(`${this.picked.size} selected`); }
      if (other) { this.activate(other); other.querySelector("a").focus(); }
    } else if (event.key === " " && onLink) {
      this.pick(id, !this.picked.has(id), event.shiftKey);
      announce(this.picked.has(id) ? `Selected, ${this.picked.size} in all` : `Not selected, ${this.picked.size} in all`);
    } else if (onLink && this.actions.single(event) && /^[ml]$/i.test(event.key)) {
      (event.key.toLowerCase() === "m" ? this.actions.more : this.actions.less)(hit);
    } else return;
    event.preventDefault();
  }
}
