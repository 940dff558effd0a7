"use strict";
(() => {
  // Theme: auto follows the system; the choice is kept where storage is allowed (a file:// page may not have it).
  const root = document.documentElement, button = document.getElementById("theme");
  const store = (value) => { try { return value === undefined ? localStorage.getItem("diptych-theme") : localStorage.setItem("diptych-theme", value); } catch { return null; } };
  const themes = ["auto", "light", "dark"];
  const show = (theme) => {
    if (theme === "auto") root.removeAttribute("data-theme"); else root.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
  };
  let theme = themes.includes(store()) ? store() : "auto";
  show(theme);
  button.addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    store(theme);
    show(theme);
  });

  // Sorting: numbers largest first, words from A; rows without a value always last.
  const value = (row, index) => {
    const cell = row.cells[index];
    if (cell.dataset.v === undefined) return cell.textContent.trim();
    return cell.dataset.v === "" ? null : Number(cell.dataset.v);
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    for (const th of table.querySelectorAll("th[aria-sort]")) {
      th.querySelector("button").addEventListener("click", () => {
        const body = table.tBodies[0], rows = [...body.rows], index = th.cellIndex;
        const numeric = rows.some((row) => typeof value(row, index) === "number");
        const was = th.getAttribute("aria-sort");
        const down = was === "none" ? numeric : was === "ascending";
        for (const other of table.querySelectorAll("th[aria-sort]")) other.setAttribute("aria-sort", "none");
        th.setAttribute("aria-sort", down ? "descending" : "ascending");
        const sign = down ? -1 : 1;
        rows.sort((a, b) => {
          const x = value(a, index), y = value(b, index);
          if (x === null || y === null) return (x === null) - (y === null);
          return sign * (numeric ? x - y : x.localeCompare(y));
        });
        body.append(...rows);
      });
    }
  }

  // Clips: a player that steps through the frames of the strip next to it, when it is pressed.
  for (const film of document.querySelectorAll("button.film")) {
    film.style.backgroundImage = `url("${film.parentElement.querySelector("img").src}")`;
    film.hidden = false;
    film.addEventListener("click", () => {
      const on = film.getAttribute("aria-pressed") !== "true";
      film.setAttribute("aria-pressed", String(on));
    });
  }

  // Pages: one at a time, chosen by the part of the address after #. A link into a closed part opens it; printing shows all.
  const items = typeof DiptychItems === "undefined" ? null : DiptychItems;
  const pages = [...document.querySelectorAll("main > .page")], links = [...document.querySelectorAll("nav.pages a")], title = document.title;
  const show_page = (wanted) => {
    for (const page of pages) page.hidden = page !== wanted;
    for (const link of links) {
      if (link.hash === `#${wanted.id}`) { link.setAttribute("aria-current", "page"); link.scrollIntoView({ block: "nearest", inline: "nearest" }); }
      else link.removeAttribute("aria-current");
    }
    items?.shown(wanted);
    document.title = wanted === pages[0] ? title : `${wanted.dataset.title} – ${title}`;
  };
  const go = (event) => {
    const hash = location.hash.slice(1), at = hash ? items?.at(hash) ?? document.getElementById(decodeURIComponent(hash)) : null;
    const page = at?.closest(".page") ?? pages[0];
    if (pages.length > 1) show_page(page); else items?.shown(page);
    if (!at) return;
    at.querySelector(":scope > details, :scope > figure > details")?.setAttribute("open", "");
    if (at === page) { scrollTo(0, event ? document.querySelector("nav").previousElementSibling.offsetHeight : 0); if (event) page.focus({ preventScroll: true }); }
    else if (!at.matches("tr")) at.scrollIntoView();
    else {
      const reach = () => { at.scrollIntoView({ block: "center" }); at.querySelector("a").focus({ preventScroll: true }); };
      if (document.readyState === "complete") reach(); else addEventListener("load", () => setTimeout(reach)); // the browser's own jump comes first
    }
  };
  addEventListener("hashchange", go);
  go();
  addEventListener("beforeprint", () => { for (const d of document.querySelectorAll("details")) d.open = true; for (const p of pages) { items?.shown(p); p.hidden = false; } });
  addEventListener("afterprint", () => go());
})();
