// A part of a picture, chosen by dragging, by keys or by numbers.
import { $, el, hear, icon, announce } from "/static/dom.js";

const LEAST = 0.02; // of a side
const clamp = (value, low = 0, high = 1) => Math.min(high, Math.max(low, value));

/** Two corners in order and within the picture, no side under `LEAST`. */
export function sound([x0, y0, x1, y1]) {
  const [left, right] = [clamp(Math.min(x0, x1)), clamp(Math.max(x0, x1))], [top, bottom] = [clamp(Math.min(y0, y1)), clamp(Math.max(y0, y1))];
  const l = Math.min(left, 1 - LEAST), t = Math.min(top, 1 - LEAST);
  return [l, t, Math.max(right, l + LEAST), Math.max(bottom, t + LEAST)];
}

/** The rectangle over the picture. on(part) is called with [left, top, right, bottom] in 0..1 whenever it changes. */
function rectangle(picture, part, on) {
  const node = el("div", { class: "part", tabindex: "0", role: "application", "aria-label": "Part of the picture", "aria-describedby": "crop-how" },
    ["nw", "ne", "sw", "se"].map((corner) => el("i", { class: corner, "data-corner": corner })));
  const frame = el("div", { class: "cut" }, picture, node);

  function set(next, say = false) {
    part = sound(next);
    const [x0, y0, x1, y1] = part.map((value) => 100 * value);
    Object.assign(node.style, { left: `${x0}%`, top: `${y0}%`, width: `${x1 - x0}%`, height: `${y1 - y0}%` });
    on(part);
    if (say) announce(`left ${Math.round(x0)}, top ${Math.round(y0)}, right ${Math.round(x1)}, bottom ${Math.round(y1)} percent`);
  }

  let drag = null;
  const at = (event) => { const box = frame.getBoundingClientRect(); return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]; };
  frame.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    event.preventDefault();
    node.focus();
    const [x, y] = at(event), corner = event.target.dataset.corner, [x0, y0, x1, y1] = part;
    const whole = x1 - x0 > 0.97 && y1 - y0 > 0.97;
    if (corner) drag = { fixed: [corner.includes("w") ? x1 : x0, corner.includes("n") ? y1 : y0] };
    else if (event.target === node && !whole) drag = { from: [x, y], part };
    else drag = { fixed: [x, y] };
    frame.setPointerCapture(event.pointerId);
  });
  frame.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const [x, y] = at(event);
    if (drag.fixed) { if (Math.hypot(x - drag.fixed[0], y - drag.fixed[1]) > 0.01) set([...drag.fixed, x, y]); }
    else move(drag.part, x - drag.from[0], y - drag.from[1]);
  });
  for (const end of ["pointerup", "pointercancel"]) frame.addEventListener(end, () => { drag = null; });

  function move([x0, y0, x1, y1], dx, dy, say) {
    dx = clamp(dx, -x0, 1 - x1);
    dy = clamp(dy, -y0, 1 - y1);
    set([x0 + dx, y0 + dy, x1 + dx, y1 + dy], say);
  }

  node.addEventListener("keydown", (event) => {
    const step = event.ctrlKey ? 0.005 : 0.03, by = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
    if (!by) return;
    event.preventDefault();
    const [x0, y0, x1, y1] = part;
    if (event.shiftKey) set([x0, y0, clamp(x1 + by[0], x0 + LEAST), clamp(y1 + by[1], y0 + LEAST)], true);
    else move(part, ...by, true);
  });
  return { frame, node, set };
}

/** Shows the dialog for a picture (its address) and calls done(part) with the chosen part, null for the whole picture. */
export function chooseCrop(address, initial, done) {
  const dialog = $("crop"), start = initial || [0.15, 0.15, 0.85, 0.85];
  let part = start;
  const names = ["Left", "Top", "Right", "Bottom"];
  const edges = names.map((name, i) => el("input", { type: "number", id: `edge-${i}`, min: "0", max: "100", step: "1", oninput: () => {
    const next = edges.map((edge) => Number(edge.value) / 100);
    if (edges.every((edge) => edge.value !== "" && edge.validity.valid) && next[0] < next[2] && next[1] < next[3]) shape.set(next);
  } }));
  const picture = el("img", { src: address, alt: "The picture of which a part is chosen", draggable: "false" });
  const shape = rectangle(picture, part, (next) => {
    part = next;
    edges.forEach((edge, i) => { if (edge !== document.activeElement) edge.value = Math.round(100 * next[i]); });
  });
  const end = (choice) => { dialog.close(); done(choice); };
  dialog.replaceChildren(
    el("div", { class: "head" }, el("h2", { id: "crop-title" }, "Search for a part of the picture"),
      el("button", { type: "button", class: "round", onclick: () => dialog.close() }, icon("close"), hear("Close"))),
    el("form", { class: "inner", onsubmit: (event) => { event.preventDefault(); end(part); } },
      shape.frame,
      el("p", { class: "note", id: "crop-how" }, "Drag over the picture. With keys: arrows move the part, with Shift they change its size, with Ctrl the steps are small."),
      el("div", { class: "edges" }, names.map((name, i) => el("div", { class: "field" }, el("label", { for: `edge-${i}` }, `${name} (%)`), edges[i]))),
      el("div", { class: "row" }, el("button", { type: "submit", class: "main" }, "Search this part"),
        el("button", { type: "button", class: "plain", onclick: () => end(null) }, "Whole picture"))));
  const size = () => { shape.frame.style.width = `min(100%, calc(min(52dvh, 34rem) * ${picture.naturalWidth / picture.naturalHeight}))`; };
  picture.addEventListener("load", size);
  shape.set(start);
  dialog.showModal();
  shape.node.focus();
}
