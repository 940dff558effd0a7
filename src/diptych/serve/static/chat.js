// The chat page: messages with pictures and clips to a model, answers as they are written.
import { $, announce, answerTo, api, download, el, hear, icon, Problem, recall, remember, setting } from "/static/dom.js";
import { closable, incoming, setUp } from "/static/page.js";
import { load, loadClip, loadId } from "/static/picture.js";
import { eventsOf } from "/static/stream.js";
import { enlarge, figures, messagesOf, Turns } from "/static/turns.js";

const SETTINGS = ["temperature", "top_p", "max_tokens", "seed", "system"];
const MOST = 8; // pictures of one message
let models = [];
let turns = []; // {role, text, pictures?, busy?, error?, figures?}
let held = []; // pictures of the message that is being written
let asked = null; // AbortController of the answer that arrives

const list = new Turns($("list"), { again, edit, busy: () => asked !== null });

// ---- pictures of the message -----------------------------------------------------------------------------------------------

function showHeld() {
  $("held").replaceChildren(...held.map((picture) => el("li", {}, el("button", { type: "button", class: "shot", onclick: () => enlarge(picture) }, el("img", { src: picture.url, alt: picture.name })),
    el("button", { type: "button", class: "off", title: "Remove", onclick: () => { held = held.filter((each) => each !== picture); showHeld(); $("text").focus(); } }, icon("close"), hear(`Remove ${picture.name}`)))));
  $("held").hidden = !held.length;
}

async function take(sources) {
  for (const source of sources) {
    if (held.length >= MOST) { complain(`A message takes ${MOST} pictures.`); break; }
    try {
      held = [...held, await source()];
    } catch (error) { complain(error.message); }
  }
  showHeld();
  announce(`${held.length === 1 ? "1 picture" : `${held.length} pictures`} in the message`);
  $("text").focus();
}

// ---- the conversation ------------------------------------------------------------------------------------------------------

function save() {
  const done = turns.filter((turn) => !turn.busy);
  remember("diptych-chat", done.length ? done : null);
  $("export").disabled = !turns.length;
}

/** An error in the conversation that no answer belongs to. */
function complain(message) {
  turns.push({ role: "assistant", text: "", error: message });
  list.show(turns);
  announce(message);
  save();
  toEnd(true);
}

const atEnd = () => innerHeight + scrollY > document.documentElement.scrollHeight - 160;
function toEnd(always) { if (always || atEnd()) scrollTo({ top: document.documentElement.scrollHeight }); }

function again(at) {
  if (asked) return;
  turns = turns.slice(0, at);
  while (turns.length && turns.at(-1).role === "assistant") turns.pop();
  if (turns.length) answer(); else list.show(turns);
}

function edit(at, text) {
  if (asked || (!text && !turns[at].pictures?.length)) return;
  turns = [...turns.slice(0, at), { ...turns[at], text }];
  answer();
}

function send() {
  const text = $("text").value.trim();
  if (asked || (!text && !held.length)) return;
  turns.push({ role: "user", text, ...(held.length ? { pictures: held } : {}) });
  held = [];
  $("text").value = "";
  grow();
  showHeld();
  answer();
}

function sampling() {
  const body = {};
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    const field = $(name);
    if (field.value !== "" && field.validity.valid && !field.disabled) body[name === "max_tokens" ? "max_completion_tokens" : name] = Number(field.value);
  }
  return body;
}

async function answer() {
  const model = $("model").value, turn = { role: "assistant", text: "", busy: true }, body = { model, messages: messagesOf(turns, $("system").value.trim()), stream: true, stream_options: { include_usage: true }, ...sampling() };
  turns.push(turn);
  asked = new AbortController();
  working(true);
  list.show(turns);
  toEnd(true);
  const at = turns.length - 1, begun = performance.now(), result = { model, seconds: 0 };
  let frame = 0, pieces = 0, first = 0;
  const show = () => { frame ||= requestAnimationFrame(() => { frame = 0; if (turn.busy) { list.update(turns, at); toEnd(); } }); };
  try {
    const reply = await answerTo("/v1/chat/completions", { body, signal: asked.signal });
    for await (const data of eventsOf(reply.body)) {
      const event = JSON.parse(data);
      if (event.error) throw new Problem(event.error.message || "The answer broke off.");
      const piece = event.choices?.[0]?.delta?.content;
      if (piece) { turn.text += piece; pieces += 1; first ||= performance.now(); show(); }
      if (event.usage) result.tokens = event.usage.completion_tokens;
      if (event.note) result.note = event.note;
      if (event.timings) result.rate = event.timings.tokens_per_second ?? event.timings.predicted_per_second ?? result.rate;
    }
  } catch (error) {
    if (error.name === "AbortError" || asked.signal.aborted) result.stopped = true;
    else turn.error = error instanceof Problem ? error.message : "The answer broke off: the connection was lost.";
  }
  cancelAnimationFrame(frame);
  result.seconds = (performance.now() - begun) / 1000;
  result.tokens ||= pieces;
  if (!result.rate && pieces > 1) result.rate = (pieces - 1) / ((performance.now() - first) / 1000);
  turn.busy = false;
  asked = null;
  turn.figures = result;
  if (!turn.text && !turn.error && !result.stopped) turn.error = "The model answered with nothing.";
  if (turn.error && turn.text) { const error = turn.error; turn.error = undefined; list.update(turns, at); turns.push({ role: "assistant", text: "", error }); }
  list.show(turns);
  toEnd();
  working(false);
  announce(turns.at(-1).error ? `Error: ${turns.at(-1).error}` : result.stopped ? "Stopped" : `Answer: ${turn.text}`);
  save();
}

function working(on) {
  $("stop").hidden = !on;
  $("send").hidden = on;
  $("new").disabled = on;
  if (on && document.activeElement === document.body) $("text").focus();
  document.body.toggleAttribute("data-busy", on);
}

// ---- the form --------------------------------------------------------------------------------------------------------------

function grow() {
  const field = $("text");
  field.style.height = "auto";
  field.style.height = `${Math.min(field.scrollHeight, 192)}px`;
}

function stop() { if (asked) { asked.abort(); $("text").focus(); } }

/** Whether the chosen model takes clips; a GIF is then one, too. */
const takesClips = () => Boolean(models.find((each) => each.id === $("model").value)?.can?.includes("clip"));
const isClip = (file) => takesClips() && (file.type.startsWith("video/") || file.type === "image/gif");

/** What this model can be asked for: its settings, whether it follows a question. */
function chosen() {
  const model = models.find((each) => each.id === $("model").value), settings = model?.sampling || {};
  setting("diptych-chat-model", model?.id || "");
  $("file").accept = takesClips() ? "image/*,video/*" : "image/*";
  const follows = !model?.can || model.can.includes("chat");
  $("text").placeholder = follows ? "Your question" : "This model writes captions: add a picture and send it";
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    const field = $(name), known = settings[name];
    field.disabled = model?.sampling !== undefined && known === undefined; // a model that always writes the likeliest text
    if (known === undefined || known === null) continue;
    if (known.max !== undefined) field.max = known.max;
    const usual = known.default ?? known;
    if (typeof usual === "number" && name !== "seed" && !field.dataset.own) field.value = usual;
  }
}

$("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("stop").addEventListener("click", stop);
$("text").addEventListener("input", grow);
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
  else if (event.key === "ArrowUp" && !$("text").value && !asked) {
    const last = turns.findLastIndex((turn) => turn.role === "user");
    if (last >= 0) { event.preventDefault(); list.edit(turns[last], last, $("list").children[last]); }
  }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && asked && !document.querySelector("dialog[open]")) stop(); });
$("settings-button").addEventListener("click", () => {
  const shown = $("settings").hidden;
  $("settings").hidden = !shown;
  $("settings-button").setAttribute("aria-expanded", String(shown));
  if (shown) $("temperature").focus();
});
for (const name of SETTINGS) $(name).addEventListener("input", () => { $(name).dataset.own = "yes"; });
$("new").addEventListener("click", () => { turns = []; held = []; showHeld(); list.show(turns); save(); announce("New conversation"); $("text").focus(); });
$("export").addEventListener("click", () => download("conversation.json", `${JSON.stringify({ messages: messagesOf(turns, $("system").value.trim(), true) })}\n`));
$("model").addEventListener("change", chosen);
closable($("large"));
incoming((files) => take(files.map((file) => () => (isClip(file) ? loadClip(file) : load(file)))), takesClips);

async function begin() {
  setUp("text");
  turns = (recall("diptych-chat") || []).filter((turn) => turn && typeof turn.text === "string");
  list.show(turns);
  save();
  let facts;
  try {
    facts = await api("/v1/index");
  } catch (error) { complain(error.message); return; }
  $("to-search").hidden = !(facts.can || []).includes("search");
  models = (facts.models || []).filter((model) => !model.can || model.can.includes("chat") || model.can.includes("caption"));
  $("model").replaceChildren(...models.map((model) => el("option", { value: model.id }, model.id)));
  const last = setting("diptych-chat-model");
  if (models.some((model) => model.id === last)) $("model").value = last;
  if (models.length) chosen();
  else { $("send").disabled = true; complain("No model of this server answers. Start it with one that does: diptych serve --model RUN, of a recipe such as llava-instruct or coca."); }
  const ids = recall("diptych-chat-pictures");
  remember("diptych-chat-pictures", null);
  if (Array.isArray(ids)) await take(ids.filter(Number.isInteger).map((id) => () => loadId(id)));
  else if (!matchMedia("(hover: none)").matches) $("text").focus();
  toEnd(true);
}

begin();
