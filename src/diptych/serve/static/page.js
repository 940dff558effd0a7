// What both pages do alike: theme, help, single keys, pictures that are dropped or pasted.
import { $, announce, setting } from "/static/dom.js";

const THEMES = ["auto", "light", "dark"];

function showTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  $("theme").title = `Theme: ${theme}`;
  $("theme").querySelector(".hear").textContent = `Theme: ${theme}`;
  document.dispatchEvent(new CustomEvent("themed"));
}

function themes() {
  let theme = THEMES.includes(setting("diptych-theme")) ? setting("diptych-theme") : "auto";
  showTheme(theme);
  $("theme").addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    setting("diptych-theme", theme);
    showTheme(theme);
    announce(`Theme: ${theme}`);
  });
}

/** Whether keys without Ctrl act: not while a text is written, nor when they were switched off (speech input types letters). */
export function singleKey(event) {
  const typing = event.target.closest?.("input:not([type=checkbox]), textarea, select, [contenteditable]");
  return $("single-keys").checked && !typing && !event.ctrlKey && !event.metaKey && !event.altKey && !event.isComposing;
}

/** Closes a dialog by its button and by a click on the page behind it. */
export function closable(dialog) {
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog && event.detail) { // the dialog itself is its backdrop and its edge
      const box = dialog.getBoundingClientRect();
      const inside = event.clientX >= box.left && event.clientX <= box.right && event.clientY >= box.top && event.clientY <= box.bottom;
      if (!inside) dialog.close();
    }
    if (event.target.closest("[data-close]")) dialog.close();
  });
}

function help(home) {
  closable($("help"));
  $("help-button").addEventListener("click", () => $("help").showModal());
  $("single-keys").checked = setting("diptych-keys") !== "off";
  $("single-keys").addEventListener("change", (event) => setting("diptych-keys", event.target.checked ? "on" : "off"));
  document.addEventListener("keydown", (event) => {
    if (!singleKey(event) || document.querySelector("dialog[open]")) return;
    if (event.key === "?") $("help").showModal();
    else if (event.key === "/") $(home).focus();
    else return;
    event.preventDefault();
  });
}

/** Calls `take(files)` for pictures that are dropped on the page, pasted, or chosen with the button. also(): whether clips are
 * taken, too. */
export function incoming(take, also = () => false) {
  const pictures = (list) => [...(list || [])].filter((file) => file.type.startsWith("image/") || (also() && file.type.startsWith("video/")));
  const carries = (event) => [...(event.dataTransfer?.types || [])].includes("Files");
  let depth = 0;
  const over = (shown) => { $("drop").hidden = !shown; if (!shown) depth = 0; };
  document.addEventListener("dragenter", (event) => { if (carries(event)) { depth += 1; over(true); event.preventDefault(); } });
  document.addEventListener("dragleave", (event) => { if (carries(event) && --depth <= 0) over(false); });
  document.addEventListener("dragover", (event) => { if (carries(event)) event.preventDefault(); });
  document.addEventListener("drop", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    over(false);
    const files = pictures(event.dataTransfer.files);
    if (files.length) take(files); else announce("That is no picture");
  });
  document.addEventListener("paste", (event) => {
    const files = pictures(event.clipboardData?.files);
    if (files.length) { event.preventDefault(); take(files); }
  });
  $("add-picture").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", (event) => {
    const files = pictures(event.target.files);
    event.target.value = "";
    if (files.length) take(files);
  });
}

/** Sets a page up; home: the id of the field that "/" goes to. */
export function setUp(home) {
  themes();
  help(home);
}
