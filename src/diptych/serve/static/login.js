// After the token, back to where the visit began. The form itself is plain HTML and works without this file.
import { $, remember } from "/static/dom.js";

const form = $("login"), wrong = $("wrong");

function refuse(message) {
  wrong.textContent = message;
  wrong.hidden = false;
  $("token").setAttribute("aria-invalid", "true");
  $("token").focus();
  $("token").select();
}

function next() {
  let path = null;
  try { path = sessionStorage.getItem("diptych-next"); } catch { /* the start page then */ }
  remember("diptych-next", null);
  return path && /^\/(?![/\\])/.test(path) ? path : "/";
}

if (new URLSearchParams(location.search).has("wrong")) refuse("That is not the token.");

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const token = $("token").value.trim();
  let answer;
  try {
    answer = await fetch("/login", { method: "POST", body: new URLSearchParams({ token }), credentials: "same-origin" });
  } catch {
    refuse("The server does not answer.");
    return;
  }
  if (answer.status === 429) refuse(`Too many wrong tokens. Try again in ${answer.headers.get("Retry-After") || "60"} s.`);
  else if (!answer.ok || new URL(answer.url).pathname === "/login") refuse("That is not the token.");
  else location.assign(next());
});
