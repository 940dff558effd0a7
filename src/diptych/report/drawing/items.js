"use strict";
// The lists of items: 50 rows at a time from data in the page, so that 30,000 items open as quickly as 30.
const DiptychItems = (() => {
  const AT_ONCE = 50, EXACT = 13, DRAWN = 1500, DRAWS = 4000;
  const make = (name, text, attributes = {}) => {
    const node = document.createElement(name);
    if (text !== undefined) node.textContent = text;
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  };

  // log of the binomial coefficient's parts, for exact tails
  const logs = [0];
  const factorial = (n) => { for (let i = logs.length; i <= n; i++) logs[i] = logs[i - 1] + Math.log(i); return logs[n]; };
  const erfc = (x) => { // Numerical Recipes' Chebyshev form: relative error below 1.2e-7
    const t = 1 / (1 + 0.5 * x);
    const series = [-1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806, 0.27886807, -1.13520398, 1.48851587, -0.82215223, 0.17087277];
    return t * Math.exp(-x * x + series.reduceRight((sum, c) => sum * t + c, 0));
  };

  // Two-sided p of flipped signs of the clusters' sums, as diptych.benchmarks.statistics.sign_flip_p; how: exact, drawn or normal.
  const signFlip = (differences, clusters) => {
    const by = new Map();
    differences.forEach((d, i) => by.set(clusters[i], (by.get(clusters[i]) ?? 0) + d));
    const sums = [...by.values()].filter((s) => Math.abs(s) > 1e-12), total = Math.abs(sums.reduce((a, b) => a + b, 0)), bound = total * (1 - 1e-9);
    if (!sums.length) return { p: 1, how: "exact" };
    const sizes = sums.map(Math.abs), equal = sizes.every((s) => Math.abs(s - sizes[0]) < 1e-9);
    if (equal) {
      const n = sums.length, k = Math.round((total / sizes[0] + n) / 2); // the larger number of equal signs
      let p = 0;
      for (let i = k; i <= n; i++) p += Math.exp(factorial(n) - factorial(i) - factorial(n - i) - n * Math.LN2);
      return { p: Math.min(1, 2 * p), how: "exact" };
    }
    if (sums.length <= EXACT) {
      let hits = 0;
      for (let bits = 0; bits < 2 ** sums.length; bits++) {
        let sum = 0;
        for (let i = 0; i < sizes.length; i++) sum += bits >> i & 1 ? sizes[i] : -sizes[i];
        hits += Math.abs(sum) >= bound;
      }
      return { p: hits / 2 ** sums.length, how: "exact" };
    }
    if (sums.length > DRAWN) return { p: Math.max(erfc(bound / Math.sqrt(2 * sizes.reduce((a, s) => a + s * s, 0))), 1 / 10001), how: "normal" };
    let state = 0x9E3779B9, hits = 0;
    for (let draw = 0; draw < DRAWS; draw++) {
      let sum = 0;
      for (let i = 0; i < sizes.length; i++) {
        state ^= state << 13; state ^= state >>> 17; state ^= state << 5;
        sum += state & 0x10000 ? sizes[i] : -sizes[i];
      }
      hits += Math.abs(sum) >= bound;
    }
    return { p: (1 + hits) / (1 + DRAWS), how: "drawn" };
  };

  const lists = new Map();
  class List {
    constructor(root) {
      this.root = root;
      this.page = root.closest(".page");
      this.name = root.dataset.of;
      this.at = 0;
    }

    open() {
      if (this.data) return this;
      this.data = JSON.parse(document.getElementById(`itemdata-${this.name}`).textContent);
      const data = this.data, bar = this.root.querySelector(".items-controls");
      const choice = (title, options, selected) => {
        const label = make("label", title), select = make("select");
        options.forEach(([value, text]) => { const option = make("option", text, { value }); option.selected = value === selected; select.append(option); });
        label.append(select);
        select.addEventListener("change", () => { this.at = 0; this.chosen = undefined; this.show(); });
        bar.append(label);
        return select;
      };
      const models = data.models.map((m, i) => [String(i), m]);
      this.several = models.length > 1;
      if (this.several) { this.a = choice("A", models, String(data.first[0])); this.b = choice("B", models, String(data.first[1])); }
      if (data.metrics.length > 1) this.metric = choice("Measure", data.metrics.map((m, i) => [String(i), m]), "0");
      const shown = this.several
        ? [["all", "all items"], ["differ", "only one is better"], ["a", "A better than B"], ["b", "B better than A"], ["right", "both right"], ["wrong", "both wrong"]]
        : [["all", "all items"], ["right", "right"], ["wrong", "not right"]];
      this.which = choice("Show", shown, this.several ? "differ" : "all");
      const slices = Object.entries(data.slices).flatMap(([field, s]) => s.values.map((v, i) => [`${i} ${field}`, `${field} = ${v}`]));
      if (slices.length) this.slice = choice("Slice", [["", "all slices"], ...slices], "");
      const label = make("label", "Search");
      this.search = make("input", undefined, { type: "search", placeholder: "in texts and names" });
      label.append(this.search);
      bar.append(label);
      this.search.addEventListener("input", () => { this.at = 0; this.show(); });
      const pages = this.root.querySelector(".items-pages");
      this.back = make("button", "Previous", { type: "button" });
      this.next = make("button", "Next", { type: "button" });
      this.where = make("span", "");
      pages.append(this.back, this.where, this.next);
      this.back.addEventListener("click", () => this.turn(-1));
      this.next.addEventListener("click", () => this.turn(1));
      this.root.addEventListener("keydown", (event) => this.key(event));
      this.show();
      return this;
    }

    good(metric, model, item) {
      const credit = this.data.credits[metric][model][item];
      return credit === null || credit === undefined ? null : this.data.lower[metric] ? 1 - credit : credit;
    }

    select() {
      const data = this.data, metric = Number(this.metric?.value ?? 0), a = Number(this.a?.value ?? 0), b = Number(this.b?.value ?? 0);
      const [value, ...field] = (this.slice?.value ?? "").split(" "), slice = this.slice?.value ? data.slices[field.join(" ")].of : null;
      const words = this.search.value.trim().toLowerCase(), found = [], differences = [], clusters = [];
      const counts = { n: 0, a: 0, b: 0, right: 0, sum: 0 };
      for (let i = 0; i < data.items.length; i++) {
        if (slice && slice[i] !== Number(value)) continue;
        const x = this.good(metric, a, i), y = this.several ? this.good(metric, b, i) : x;
        if (x === null || y === null) continue;
        counts.n++;
        counts.sum += x;
        differences.push(x - y);
        clusters.push(data.clusters[i]);
        if (x > y) counts.a++; else if (y > x) counts.b++;
        const kind = { all: true, differ: x !== y, a: x > y, b: y > x, right: x >= 1 && y >= 1, wrong: x < 1 && y < 1 }[this.which.value];
        if (kind && (!words || this.text(i, a, b).includes(words))) found.push(i);
      }
      return { found, counts, metric, a, b, test: this.several ? signFlip(differences, clusters) : null, mean: differences.reduce((s, d) => s + d, 0) / (counts.n || 1) };
    }

    text(i, a, b) {
      const data = this.data, of = (place) => place < 0 ? "" : data.strings[place];
      return `${data.items[i]} ${of(data.text[i])} ${of(data.wanted[i])} ${of(data.answers[a][i])} ${of(data.answers[b][i])}`.toLowerCase();
    }

    show() {
      const chosen = this.select(), { found, counts, test } = chosen, data = this.data;
      this.found = found;
      this.at = Math.max(0, Math.min(this.at, Math.floor(Math.max(0, found.length - 1) / AT_ONCE) * AT_ONCE));
      const p = test && (test.p < 0.001 ? "p < 0.001" : `p ${test.how === "exact" ? "=" : "≈"} ${test.p.toFixed(3)}`);
      const points = (value) => `${value > 0 ? "+" : value < 0 ? "−" : ""}${Math.abs(value * 100).toFixed(1)} points`;
      const status = this.root.querySelector(".items-test");
      status.textContent = this.several
        ? `Of ${counts.n.toLocaleString("en")} items, A (${data.models[chosen.a]}) is better in ${counts.a.toLocaleString("en")}, B (${data.models[chosen.b]}) in ${counts.b.toLocaleString("en")}; A − B ${points(chosen.mean)}, ${p}. ${found.length.toLocaleString("en")} shown.`
        : `${found.length.toLocaleString("en")} of ${counts.n.toLocaleString("en")} items; mean ${(counts.sum / (counts.n || 1) * 100).toFixed(1)} %.`;
      if (test) status.dataset.p = test.p;
      const rows = found.slice(this.at, this.at + AT_ONCE), place = this.root.querySelector(".scroll");
      place.replaceChildren(this.table(rows, chosen));
      this.where.textContent = found.length ? `${(this.at + 1).toLocaleString("en")}–${(this.at + rows.length).toLocaleString("en")} of ${found.length.toLocaleString("en")}` : "no items";
      this.back.disabled = this.at === 0;
      this.next.disabled = this.at + AT_ONCE >= found.length;
    }

    table(rows, { metric, a, b }) {
      const data = this.data, of = (place) => place < 0 ? "" : data.strings[place];
      const pictured = rows.some((i) => data.pictures[i]), asked = rows.some((i) => data.text[i] >= 0), wanted = rows.some((i) => data.wanted[i] >= 0);
      const models = this.several ? [a, b] : [a], fields = Object.keys(data.slices);
      const table = make("table"), head = make("tr");
      table.append(make("caption", `Items of ${data.task}`, { class: "hear" }));
      const titles = ["Item", ...(pictured ? ["Picture"] : []), ...(asked ? ["Asked"] : []), ...(wanted ? ["Wanted"] : [])];
      for (const title of titles) head.append(make("th", title, { scope: "col" }));
      models.forEach((m, k) => {
        const cell = make("th", undefined, { scope: "col" });
        cell.append(make("span", undefined, { class: `key c${data.colours[m] % 7}`, "aria-hidden": "true" }), this.several ? `${"AB"[k]}: ${data.models[m]}` : data.models[m]);
        head.append(cell);
      });
      if (fields.length) head.append(make("th", "Slices", { scope: "col" }));
      const thead = make("thead"), body = make("tbody");
      thead.append(head);
      for (const i of rows) {
        const row = make("tr", undefined, { id: this.hash(i), ...(i === this.chosen ? { class: "chosen" } : {}) }), first = make("th", undefined, { scope: "row" });
        first.append(make("a", data.items[i], { href: `#${this.hash(i)}`, title: "A link to this item" }));
        row.append(first);
        if (pictured) {
          const cell = make("td");
          if (data.pictures[i]) cell.append(make("img", undefined, { src: data.pictures[i], alt: of(data.text[i]) || of(data.wanted[i]) || `item ${data.items[i]}`, loading: "lazy" }));
          row.append(cell);
        }
        if (asked) row.append(make("td", of(data.text[i])));
        if (wanted) row.append(make("td", of(data.wanted[i])));
        for (const m of models) {
          const credit = this.good(metric, m, i), cell = make("td", undefined, { class: credit >= 1 ? "right" : "wrong" });
          const mark = credit >= 1 ? "✓ right" : credit > 0 ? `≈ ${(credit * 100).toFixed(0)} %` : "✗ wrong", said = of(data.answers[m][i]);
          cell.append(mark, ...(said ? [make("span", said, { class: "note", style: "display:block" })] : []));
          row.append(cell);
        }
        if (fields.length) row.append(make("td", fields.filter((f) => data.slices[f].of[i] >= 0).map((f) => `${f}: ${data.slices[f].values[data.slices[f].of[i]]}`).join(", "), { class: "note" }));
        body.append(row);
      }
      table.append(thead, body);
      return table;
    }

    hash(i) { return `item=${this.name}/${encodeURIComponent(this.data.items[i])}`; }

    turn(way) { this.at += way * AT_ONCE; this.show(); this.root.querySelector("tbody a")?.focus(); }

    // Brings an item into view, whatever was chosen before; its row, or null if there is no such item.
    reveal(name) {
      const i = this.open().data.items.indexOf(name);
      if (i < 0) return null;
      this.chosen = i;
      if (!this.found.includes(i)) {
        this.which.value = "all";
        this.search.value = "";
        if (this.slice) this.slice.value = "";
        if (this.metric && this.good(Number(this.metric.value), Number(this.a?.value ?? 0), i) === null) {
          const metric = this.data.metrics.findIndex((_, m) => this.data.models.some((_, k) => this.good(m, k, i) !== null));
          if (metric >= 0) this.metric.value = String(metric);
        }
        this.show();
      }
      const at = this.found.indexOf(i);
      if (at < 0) return null;
      this.at = Math.floor(at / AT_ONCE) * AT_ONCE;
      this.show();
      return this.root.querySelector("tr.chosen");
    }

    key(event) {
      if (event.target.matches("input, select")) return;
      const links = [...this.root.querySelectorAll("tbody a")], now = links.indexOf(document.activeElement);
      if (event.key === "/") { event.preventDefault(); this.search.focus(); }
      else if (event.key === "PageDown" && !this.next.disabled) { event.preventDefault(); this.turn(1); }
      else if (event.key === "PageUp" && !this.back.disabled) { event.preventDefault(); this.turn(-1); }
      else if (event.key === "ArrowDown" && now >= 0) { event.preventDefault(); (links[now + 1] ?? links[now]).focus(); }
      else if (event.key === "ArrowUp" && now >= 0) { event.preventDefault(); (links[now - 1] ?? links[now]).focus(); }
    }
  }

  for (const root of document.querySelectorAll(".items")) lists.set(root.dataset.of, new List(root));
  return {
    // The row of an address such as item=pope/17; undefined if it is no address of an item.
    at(hash) {
      const match = /^item=([\w-]+)\/(.+)$/.exec(hash);
      const list = match && lists.get(match[1]);
      if (!list) return undefined;
      try { return list.reveal(decodeURIComponent(match[2])) ?? list.root; } catch { return list.root; }
    },
    // The lists of a page that is shown are filled then, not before.
    shown(page) { for (const list of lists.values()) if (!list.page || list.page === page) list.open(); },
    signFlip,
  };
})();
