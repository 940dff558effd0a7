// Boxes in answers: found in the text, drawn on the picture.
import { el, svg } from "/static/dom.js";

export const COLOURS = ["#0b5c8f", "#a3400a", "#14704f", "#8d2f6b", "#6a5200", "#5b3fa0"];
const N = "(-?\\d*\\.?\\d+)";
const FORMS = new RegExp(`(?:<ref>([^<]*)</ref>\\s*)?(?:<box>\\s*[[(]?\\s*${N}\\s*,\\s*${N}\\s*\\)?\\s*,\\s*\\(?\\s*${N}\\s*,\\s*${N}\\s*[\\])]?\\s*</box>|\\[\\s*${N}\\s*,\\s*${N}\\s*,\\s*${N}\\s*,\\s*${N}\\s*\\])`, "g");

/** The parts of a text: texts, and boxes {box: [left, top, right, bottom] in 0..1, label}. What is no box within the picture stays text. */
export function partsOf(text) {
  const parts = [];
  let from = 0;
  for (const match of text.matchAll(FORMS)) {
    const box = match.slice(2).filter((value) => value !== undefined).map(Number);
    if (!box.every((value) => value >= 0 && value <= 1) || box[0] >= box[2] || box[1] >= box[3]) continue;
    if (match.index > from) parts.push(text.slice(from, match.index));
    parts.push({ box, label: (match[1] || "").trim() });
    from = match.index + match[0].length;
  }
  if (from < text.length) parts.push(text.slice(from));
  return parts;
}

const BEGUN = ["ref", "box"].map((tag) => { // "<b", "<box>0.1,", "<box>0.1,0.2</bo" at the end of a text
  const opening = [...tag].reduceRight((rest, letter) => `(?:${letter}${rest})?`, `(?:>[^<]*(?:<(?:/(?:${tag[0]}(?:${tag[1]}${tag[2]}?)?)?)?)?)?`);
  return `<${opening}`;
});
const UNSETTLED = new RegExp(`(?:<ref>[^<]*</ref>\\s*)?(?:${BEGUN.join("|")})$|<ref>[^<]*</ref>\\s*$`);

/** A text that is still arriving, without a box that has only begun. */
export const settled = (text) => text.replace(UNSETTLED, "");

const mark = (at) => { const node = el("span", { class: "mark" }, String(at + 1)); node.style.setProperty("--mark", COLOURS[at % COLOURS.length]); return node; };

/** The nodes of a text, with a number where a box was. */
export function nodesOf(text) {
  let at = 0;
  return partsOf(text).flatMap((part) => {
    if (typeof part === "string") return [document.createTextNode(part)];
    const number = mark(at++);
    number.setAttribute("aria-label", `box ${at}`);
    number.setAttribute("role", "img");
    return part.label ? [document.createTextNode(`${part.label} `), number] : [number];
  });
}

/** The picture with the boxes of a text; null if there are none. */
export function drawing(text, picture) {
  const boxes = partsOf(text).filter((part) => typeof part !== "string");
  if (!boxes.length || !picture) return null;
  const percent = (value) => `${Math.round(100 * value)} %`;
  const label = boxes.map(({ box, label: name }, at) => `${at + 1}${name ? `, ${name}` : ""}: left ${percent(box[0])}, top ${percent(box[1])}, right ${percent(box[2])}, bottom ${percent(box[3])}`).join("; ");
  const shapes = boxes.flatMap(({ box: [x0, y0, x1, y1] }, at) => ["under", "over"].map((kind) => svg("rect", { class: kind, x: x0, y: y0, width: x1 - x0, height: y1 - y0, ...(kind === "over" ? { stroke: COLOURS[at % COLOURS.length] } : {}) })));
  const marks = boxes.map(({ box }, at) => { const node = mark(at); node.setAttribute("aria-hidden", "true"); node.style.left = `${100 * box[0]}%`; node.style.top = `${100 * box[1]}%`; return node; });
  return el("figure", { class: "boxed" }, el("img", { src: picture.url, alt: `${picture.name} with ${boxes.length === 1 ? "a box" : `${boxes.length} boxes`}: ${label}` }),
    svg("svg", { viewBox: "0 0 1 1", preserveAspectRatio: "none", "aria-hidden": "true" }, ...shapes), marks);
}
