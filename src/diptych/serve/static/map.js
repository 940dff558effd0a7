// The map of the collection: near pictures show near things. Pictures are drawn where there is room, dots for the rest.
import { api, announce, counted, el, hear, icon, number } from "/static/dom.js";

const CELL = 64; // pixels of a picture on the map, and of the room that it takes
const AROUND = [-1, 0, 1].flatMap((x) => [-1, 0, 1].map((y) => [x, y])); // a cell and its neighbours
const MOST = 70; // pictures that a click shows
const HUES = [205, 24, 160, 325, 42, 265, 95, 355, 185, 230, 65, 300];
const colour = (cluster, dark) => (cluster < 0 ? (dark ? "#737b84" : "#868c8d") : `hsl(${HUES[cluster % HUES.length]} ${dark ? "55% 64%" : "58% 42%"})`);

/** Points and groups with places from 0 to 1 in both directions, whatever part of the plane they fill. */
function fitted(points, clusters) {
  const ends = (axis) => points.reduce(([low, high], point) => [Math.min(low, point[axis]), Math.max(high, point[axis])], [Infinity, -Infinity]);
  const [left, right] = ends(1), [top, bottom] = ends(2), x = (value) => (value - left) / (right - left || 1), y = (value) => (value - top) / (bottom - top || 1);
  return { points: points.map(([id, px, py, cluster]) => [id, x(px), y(py), cluster]), clusters: clusters.map((each) => ({ ...each, x: x(each.x), y: y(each.y) })) };
}

/** The map. actions: open(id), title(id), hits() → ids of the present search. */
export class CollectionMap {
  constructor(root, actions) {
    this.root = root;
    this.actions = actions;
    this.data = null;
    this.images = new Map();
    this.loading = 0;
    this.scale = 1;
    this.x = this.y = 0.5; // the middle of what is seen, in 0..1
    this.chosen = null;
  }

  /** Loads the map once, then draws it. */
  async show() {
    this.root.hidden = false;
    if (!this.data) {
      this.root.replaceChildren(el("p", { class: "note", role: "status" }, "The map is being made …"));
      const { points, clusters } = await api("/v1/map");
      this.data = fitted(points, clusters);
      this.build();
    }
    this.resize();
  }

  hide() { this.root.hidden = true; }

  build() {
    const { points, clusters } = this.data;
    this.canvas = el("canvas", { tabindex: "0", role: "application", "aria-label": `Map of ${counted(points.length, "picture")}. Arrow keys move, plus and minus zoom, 0 shows all, Enter lists the pictures in the middle.` });
    this.pen = this.canvas.getContext("2d");
    this.near = el("ul", { class: "near", "aria-label": "Pictures of this place" });
    this.said = el("p", { class: "note", role: "status" }, "Choose a group, or a place on the map.");
    this.names = el("ul", { class: "names", "aria-label": "Groups" }, clusters.map((cluster, at) => {
      const dot = el("i", { "aria-hidden": "true" });
      dot.dataset.cluster = at;
      return el("li", {}, el("button", { type: "button", "aria-pressed": "false", onclick: () => this.choose(at) }, dot, el("span", { dir: "auto" }, cluster.name), el("span", { class: "count" }, number(cluster.count))));
    }));
    const zoom = (label, text, run) => el("button", { type: "button", class: "round", onclick: run, title: label }, typeof text === "string" ? icon(text) : text, hear(label));
    this.root.replaceChildren(
      el("div", { class: "sheet" }, this.canvas, el("div", { class: "zoom" }, zoom("Zoom in", "more", () => this.zoom(1.6)), zoom("Zoom out", "less", () => this.zoom(1 / 1.6)), zoom("Show all", "map", () => this.all()))),
      el("div", { class: "side", tabindex: "0", role: "group", "aria-label": "Groups and pictures" }, this.said, this.near, this.names));
    this.listen();
    new ResizeObserver(() => this.resize()).observe(this.canvas);
    document.addEventListener("themed", () => this.colours());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.colours());
    this.colours();
  }

  colours() {
    this.dark = getComputedStyle(document.documentElement).colorScheme === "dark" || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
    for (const dot of this.names.querySelectorAll("i")) dot.style.background = colour(Number(dot.dataset.cluster), this.dark);
    this.draw();
  }

  resize() {
    if (!this.canvas || this.root.hidden) return;
    const box = this.canvas.getBoundingClientRect(), dense = Math.min(2, devicePixelRatio || 1);
    this.width = box.width;
    this.height = box.height;
    this.canvas.width = Math.round(box.width * dense);
    this.canvas.height = Math.round(box.height * dense);
    this.pen.setTransform(dense, 0, 0, dense, 0, 0);
    this.draw();
  }

  /** Pixels of one unit of the map. The map fills the sheet in both directions; it has no true shape. */
  get unit() { return [Math.max(1, this.width - 2 * CELL) * this.scale, Math.max(1, this.height - 2 * CELL) * this.scale]; }

  place(x, y) { const [w, h] = this.unit; return [this.width / 2 + (x - this.x) * w, this.height / 2 + (y - this.y) * h]; }

  draw() {
    if (!this.pen || this.frame) return;
    this.frame = requestAnimationFrame(() => { this.frame = 0; this.paint(); });
  }

  paint() {
    const { pen, width, height } = this, { points, clusters } = this.data, hits = new Set(this.actions.hits());
    pen.clearRect(0, 0, width, height);
    const taken = new Map(), shown = [], margin = CELL / 2, [w, h] = this.unit;
    const seen = (x, y) => x > -margin && y > -margin && x < width + margin && y < height + margin;
    const order = hits.size ? [...points.filter((point) => hits.has(point[0])), ...points.filter((point) => !hits.has(point[0]))] : points;
    const dot = points.length > 20000 ? 1.5 : 2.5;
    for (const [id, px, py, cluster] of order) {
      const [x, y] = this.place(px, py);
      if (!seen(x, y)) continue;
      // Room is kept on a grid of the map itself, so that the same pictures stay while it moves.
      const gx = Math.floor((px * w) / CELL), gy = Math.floor((py * h) / CELL);
      const room = AROUND.every(([dx, dy]) => { const held = taken.get((gx + dx) * 65536 + gy + dy); return !held || Math.abs(held[0] - x) > CELL * 0.98 || Math.abs(held[1] - y) > CELL * 0.98; });
      if (room && shown.length < 400) {
        taken.set(gx * 65536 + gy, [x, y]);
        shown.push([id, x, y, cluster]);
      } else {
        pen.fillStyle = colour(cluster, this.dark);
        pen.globalAlpha = this.chosen === null || this.chosen === cluster ? 0.8 : 0.2;
        if (points.length > 5000) pen.fillRect(x - dot, y - dot, 2 * dot, 2 * dot);
        else { pen.beginPath(); pen.arc(x, y, dot + 0.5, 0, 7); pen.fill(); }
      }
    }
    for (const [id, x, y, cluster] of shown) {
      const image = this.image(id), half = CELL / 2 - 3;
      pen.globalAlpha = this.chosen === null || this.chosen === cluster ? 1 : 0.22;
      pen.fillStyle = image ? colour(cluster, this.dark) : this.dark ? "#23272c" : "#f0f1ee";
      pen.fillRect(x - half - 2, y - half - 2, 2 * half + 4, 2 * half + 4);
      if (image) {
        const side = Math.min(image.naturalWidth, image.naturalHeight);
        pen.drawImage(image, (image.naturalWidth - side) / 2, (image.naturalHeight - side) / 2, side, side, x - half, y - half, 2 * half, 2 * half);
      }
      if (hits.has(id)) { pen.lineWidth = 4; pen.strokeStyle = this.dark ? "#fff" : "#000"; pen.strokeRect(x - half - 3, y - half - 3, 2 * half + 6, 2 * half + 6); }
    }
    pen.globalAlpha = 1;
    this.labels(clusters);
  }

  labels(clusters) {
    const { pen } = this, boxes = [];
    pen.font = "600 14px system-ui, sans-serif";
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    clusters.forEach(({ name, x, y }, at) => {
      const [px, py] = this.place(x, y), text = name.length > 28 ? `${name.slice(0, 27)}…` : name, w = pen.measureText(text).width + 18, h = 26;
      const left = Math.min(Math.max(px - w / 2, 4), this.width - w - 4), top = Math.min(Math.max(py - h / 2, 4), this.height - h - 4);
      if (px < -60 || py < -60 || px > this.width + 60 || py > this.height + 60) return;
      if (boxes.some(([l, t, bw]) => left < l + bw && l < left + w && top < t + h && t < top + h)) return;
      boxes.push([left, top, w]);
      pen.globalAlpha = this.chosen === null || this.chosen === at ? 0.94 : 0.5;
      pen.fillStyle = this.dark ? "#1b1e22" : "#fff";
      pen.beginPath();
      pen.roundRect(left, top, w, h, 13);
      pen.fill();
      pen.strokeStyle = colour(at, this.dark);
      pen.lineWidth = 1.5;
      pen.stroke();
      pen.fillStyle = this.dark ? "#e8eaec" : "#1b1e22";
      pen.fillText(text, left + w / 2, top + h / 2 + 1);
    });
    pen.globalAlpha = 1;
  }

  /** A thumbnail if it has arrived; else it is on its way, a few at a time. */
  image(id) {
    const held = this.images.get(id);
    if (held) return held.ready ? held.image : null;
    if (this.loading > 24) { this.waiting = true; return null; }
    const image = new Image(), entry = { image, ready: false }, done = (ready) => {
      entry.ready = ready;
      this.loading -= 1;
      this.draw();
    };
    this.loading += 1;
    image.onload = () => done(true);
    image.onerror = () => done(false);
    image.src = `/thumb/${id}?s=128`;
    this.images.set(id, entry);
    return null;
  }

  move(dx, dy) {
    const [w, h] = this.unit;
    this.x = Math.min(1.05, Math.max(-0.05, this.x - dx / w));
    this.y = Math.min(1.05, Math.max(-0.05, this.y - dy / h));
    this.draw();
  }

  /** Zooms by a factor; the place under (x, y) stays where it is. */
  zoom(factor, x = this.width / 2, y = this.height / 2) {
    const before = this.unit, scale = Math.min(200, Math.max(1, this.scale * factor));
    const px = this.x + (x - this.width / 2) / before[0], py = this.y + (y - this.height / 2) / before[1];
    this.scale = scale;
    const after = this.unit;
    this.x = px - (x - this.width / 2) / after[0];
    this.y = py - (y - this.height / 2) / after[1];
    if (scale === 1) this.x = this.y = 0.5;
    this.draw();
  }

  all() {
    this.scale = 1;
    this.x = this.y = 0.5;
    this.choose(null);
  }

  /** A group: the map goes there and its pictures are listed. */
  choose(at) {
    this.chosen = this.chosen === at ? null : at;
    [...this.names.querySelectorAll("button")].forEach((button, i) => button.setAttribute("aria-pressed", String(i === this.chosen)));
    if (this.chosen === null) { this.list([], "Choose a group, or a place on the map."); this.draw(); return; }
    const its = this.data.points.filter((point) => point[3] === this.chosen), { name } = this.data.clusters[this.chosen];
    if (its.length) {
      const span = (axis) => { const values = its.map((point) => point[axis]).sort((a, b) => a - b), cut = Math.floor(values.length / 20); return [values[cut], values[values.length - 1 - cut]]; };
      const [left, right] = span(1), [top, bottom] = span(2);
      this.x = (left + right) / 2;
      this.y = (top + bottom) / 2;
      this.scale = Math.min(40, Math.max(1, 0.7 / Math.max(right - left, bottom - top, 0.02)));
    }
    this.list(its.slice(0, MOST).map((point) => point[0]), `${name}: ${counted(its.length, "picture")}`);
    this.draw();
  }

  /** The pictures next to a place of the canvas, nearest first. */
  at(x, y) {
    const around = this.data.points.map((point) => { const [px, py] = this.place(point[1], point[2]); return [Math.hypot(px - x, py - y), point[0]]; }).filter(([far]) => far < 70);
    around.sort((a, b) => a[0] - b[0]);
    return around.slice(0, MOST).map(([, id]) => id);
  }

  list(ids, text) {
    this.said.textContent = text;
    this.near.replaceChildren(...ids.map((id) => el("li", {}, el("a", { href: this.actions.link(id), onclick: (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      this.actions.open(id, ids);
    } }, el("img", { src: `/thumb/${id}?s=128`, alt: this.actions.title(id), loading: "lazy" })))));
  }

  pickAt(x, y) {
    const ids = this.at(x, y);
    this.list(ids, ids.length ? `${counted(ids.length, "picture")} here` : "No picture here.");
    if (!ids.length) announce("No picture here");
  }

  listen() {
    const { canvas } = this, held = new Map();
    let moved = 0, pinch = 0;
    const where = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
    const spread = () => { const [a, b] = [...held.values()]; return Math.hypot(a[0] - b[0], a[1] - b[1]); };
    canvas.addEventListener("pointerdown", (event) => {
      held.set(event.pointerId, where(event));
      if (held.size === 1) moved = 0;
      if (held.size === 2) pinch = spread();
      canvas.setPointerCapture(event.pointerId);
      canvas.classList.add("drag");
    });
    canvas.addEventListener("pointermove", (event) => {
      const before = held.get(event.pointerId), now = where(event);
      if (!before) return;
      held.set(event.pointerId, now);
      moved += Math.hypot(now[0] - before[0], now[1] - before[1]);
      this.move((now[0] - before[0]) / held.size, (now[1] - before[1]) / held.size);
      if (held.size === 2) {
        const [a, b] = [...held.values()], wide = spread();
        if (pinch > 0) this.zoom(wide / pinch, (a[0] + b[0]) / 2, (a[1] + b[1]) / 2);
        pinch = wide;
        moved += 10;
      }
    });
    for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, (event) => {
      if (!held.delete(event.pointerId)) return;
      if (!held.size) canvas.classList.remove("drag");
      if (kind === "pointerup" && !held.size && moved < 6) this.pickAt(...where(event));
    });
    canvas.addEventListener("wheel", (event) => { event.preventDefault(); this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0018)), ...where(event)); }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const act = {
        ArrowLeft: () => this.move(60, 0), ArrowRight: () => this.move(-60, 0), ArrowUp: () => this.move(0, 60), ArrowDown: () => this.move(0, -60),
        "+": () => this.zoom(1.4), "=": () => this.zoom(1.4), "-": () => this.zoom(1 / 1.4), 0: () => this.all(), Enter: () => this.pickAt(this.width / 2, this.height / 2),
      }[event.key];
      if (!act) return;
      event.preventDefault();
      act();
    });
  }
}
