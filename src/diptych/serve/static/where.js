// Where a model sees a text in a picture: its map over the picture, with its verdict.
import { $, announce, api, el } from "/static/dom.js";

/** A field under a picture; what is entered there is drawn below it. */
export function whereForm(picture) {
  const field = el("input", { type: "text", id: "where", maxlength: "500", placeholder: "a red fish" });
  const found = el("div", { class: "where", "aria-live": "polite" });
  const form = el("form", { class: "row", autocomplete: "off", onsubmit: async (event) => {
    event.preventDefault();
    const text = field.value.trim();
    if (!text) return;
    found.replaceChildren(el("p", {}, "…"));
    try {
      const answer = await api("/v1/locate", { body: { model: $("model")?.value || null, image_url: { url: picture.url }, text } });
      const believed = answer.faithful === null ? "not judged" : answer.faithful ? "faithful" : "not faithful";
      found.replaceChildren(el("img", { src: answer.image, alt: `where ${answer.model} sees ${text}` }),
        el("p", {}, el("strong", {}, `${text}: ${believed}`), ` (${answer.model}, ${answer.by}). ${answer.verdict}.`));
      announce(`${text}: ${believed}`);
    } catch (error) {
      found.replaceChildren(el("p", { class: "error" }, error.message));
      announce(error.message);
    }
  } }, el("label", { for: "where" }, "Where is"), field, el("button", { type: "submit", class: "quiet" }, "Show"));
  return el("div", {}, form, found);
}
