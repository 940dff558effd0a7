"""The sections of the curation report."""

from __future__ import annotations

import shlex
from collections import Counter
from typing import Any

import numpy as np

from diptych.core.errors import counted
from diptych.core.files import read_json
from diptych.curation.explain import Result
from diptych.report.curation.figures import before_after, funnel, histogram, table
from diptych.report.curation.gather import Gathered, Values, gather, largest
from diptych.report.curation.pictures import Album, shots
from diptych.report.drawing.document import Page, Section, document
from diptych.report.drawing.marks import emphasise, escape, figure, link

NAMES = 14  # of a column's texts that are shown
STYLE = """<style>
.funnel { width: 100%; max-width: 50rem; height: auto; } .chart.wide { width: 100%; max-width: 34rem; height: auto; }
rect.left { fill: var(--c0); } rect.lost { fill: var(--c0); opacity: .22; } .limit { stroke: var(--c1); stroke-width: 2; }
.shots { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: 1rem .9rem; margin: .5rem 0 1.4rem; }
.shot { min-width: 0; font-size: .8125rem; line-height: 1.35; }
.shot img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--wash); border-radius: 3px; }
.shot .said { display: block; margin-top: .3rem; } .shot .note { display: block; }
.shot.first img { outline: 2px solid var(--ink); outline-offset: 1px; }
.lost-picture { display: grid; grid-template-columns: 100%; align-items: center; overflow-wrap: anywhere; aspect-ratio: 1;
  background: var(--wash); font-size: .7rem; color: var(--soft); padding: .4rem; overflow: hidden; text-align: center; }
.swatch { display: inline-block; width: .8em; height: .8em; border-radius: 2px; background: var(--c0); margin-right: .35em; }
.swatch.pale { opacity: .22; } .group { border-top: 1px solid var(--hair); padding-top: .7rem; }
.edge { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 0 2rem; }
</style>"""


def render(result: Result) -> str:
    """The page, HTML."""
    gathered = gather(result)
    wanted = [row["row"] for rows in gathered.examples.values() for row in rows.rows()]
    wanted += [row["row"] for v in gathered.values for rows in (v.stays, v.goes) for row in rows.rows()]
    for column, sizes in gathered.sizes.items():
        wanted += [row for target, _ in largest(sizes) for row in (target, *gathered.groups[column][target])]
    album = Album(result, wanted)
    manifest = result.manifest
    sections = [
        Section("funnel", "What each step removes", _funnel(result, gathered)),
        Section("scores", "Scores and their thresholds", _scores(gathered, album)),
        Section(
            "kept",
            "Examples of what is kept",
            shots(album.shot(row) for row in gathered.examples[""].rows()) if "" in gathered.examples else "",
        ),
        Section("dropped", "Examples of what is dropped", _dropped(result, gathered, album)),
        Section("groups", "Duplicate groups", _groups(result, gathered, album)),
        Section("words", "Languages and concepts, before and after", _words(gathered)),
        Section("errors", "What could not be used or scored", _errors(gathered)),
        Section("cost", "What it cost", _cost(result)),
        Section("again", "The plan, and how to continue", _again(result)),
    ]
    facts = [
        ("Plan", manifest["plan"]),
        ("Data", manifest["data"]),
        ("Rows", f"{manifest['rows']:,}"),
        ("Kept", f"{manifest['kept']:,}"),
        ("Result", manifest["result"][:16]),
    ]
    lead = f'{STYLE}<p class="lead">{emphasise(_lead(result, gathered))}</p>'
    about = " ".join(x for x in (result.plan.about, result.plan.cite) if x)
    lead += f'<p class="note">{link(about)}</p>' if about else ""
    return document(f"Curation: {manifest['plan']}", facts, [Page("curation", "Curation", sections, lead)])


def share(n: int, of: int) -> str:
    """A share in per cent as text."""
    return f"{100 * n / of:.3g} %" if of else "none"


def _lead(result: Result, gathered: Gathered) -> str:
    rows, kept = result.manifest["rows"], result.manifest["kept"]
    sentences = [f"Of **{rows:,}** rows **{kept:,}** are kept ({share(kept, rows)})."]
    if gathered.first:
        reason, n = gathered.first.most_common(1)[0]
        sentences.append(f"Most are removed as **{reason}**: {n:,} ({share(n, rows)}).")
    needed = [(reason, n) for reason, n in gathered.only.most_common() if n]
    if len(gathered.first) > 1 and needed:
        reason, n = needed[0]
        sentences.append(f"**{reason}** matters most: it is the only reason against {counted(n, 'row')}.")
    idle = [r for r in gathered.first if not gathered.only[r]]
    if idle:
        many = "reasons" if len(idle) > 1 else "reason"
        sentences.append(f"The {many} {', '.join(f'**{r}**' for r in idle)} removed only rows that another would have removed too.")
    pointers = sum(sum(s.values()) for s in gathered.sizes.values())
    if pointers:
        groups = sum(len(s) for s in gathered.sizes.values())
        sentences.append(f"Rows that repeat another: {pointers:,}, in {counted(groups, 'group')}; each group keeps one.")
    if gathered.errors:
        sentences.append(
            f"{counted(sum(gathered.errors.values()), 'time')} something could not be read or scored; those rows carry the reason."
        )
    return " ".join(sentences)


def _funnel(result: Result, gathered: Gathered) -> str:
    order = _order(result, gathered)
    if not order:
        return "<p>Nothing was removed.</p>"
    drawing = funnel(result.manifest["rows"], [(reason, gathered.first[reason]) for reason in order])
    rows = [
        [
            escape(reason),
            escape(_condition(result, reason)),
            *(f"{c[reason]:,}" for c in (gathered.first, gathered.alone, gathered.only)),
        ]
        for reason in order
    ]
    caption = (
        "<em>First</em>: rows that the step removed first, so the order of the plan matters. <em>In all</em>: rows for which the "
        "reason holds, including rows removed before; steps that count rows (copies, a top fraction) consider only rows still "
        "kept. <em>Alone</em>: rows for which no other reason holds; without the step they would be kept, unless a step that "
        "counts rows then removes them."
    )
    return figure(drawing, caption) + "<br>" + table(["reason", "a row stays if", "first", "in all", "alone"], rows, "Reasons")


def _order(result: Result, gathered: Gathered) -> list[str]:
    """Reasons in the order of the plan."""
    order = ["unusable"]
    for step in result.steps:
        order += [step.label, f"no {step.rule.column}"] if step.rule else [f"{step.label} failed"]
    return [r for r in dict.fromkeys([*order, *gathered.first]) if gathered.first[r]]


def _condition(result: Result, reason: str) -> str:
    for step in result.steps:
        if step.rule and step.label == reason:
            threshold = step.rule.threshold(result.state(step)) if step.rule.counts_all else None
            return step.rule.text() + (f" (threshold {threshold:.5g})" if threshold is not None else "")
        if step.rule and reason == f"no {step.rule.column}":
            return f"it has a value of {step.rule.column}"
        if not step.rule and reason == f"{step.label} failed":
            return f"{step.label} could score it"
    return {"unusable": "it has a caption and an image", "unreadable image": "its image can be read"}.get(reason, "")


def _scores(gathered: Gathered, album: Album) -> str:
    panels, edges = [], []
    for v in gathered.values:
        values = np.concatenate(v.values) if v.values else np.zeros(0)
        if not len(values):
            continue
        rule = v.step.rule
        assert rule and rule.column
        kept = np.concatenate(v.kept)
        label = (
            f"{rule.column}: median {np.median(values):.4g}, from {values.min():.4g} to {values.max():.4g}; threshold {v.threshold}"
        )
        drawn = histogram(values, kept, v.threshold, label)
        panels.append(
            f'<div class="panel"><h3>{escape(rule.column)} <span class="note">{escape(rule.text())}</span></h3>{drawn}</div>'
        )
        edges.append(_edge(v, album))
    if not panels:
        return ""
    caption = (
        '<span class="swatch"></span>kept in the end <span class="swatch pale"></span>dropped, by this or another rule; vertical '
        "line: the threshold. A threshold in a dense region decides about many similar rows: compare the rows on both sides, below."
    )
    return figure(f'<div class="panels">{"".join(panels)}</div>', caption) + "<br>" + "".join(edges)


def _edge(v: Values, album: Album) -> str:
    rule = v.step.rule
    assert rule

    def side(rows: list[dict[str, Any]]) -> str:
        """HTML of the pictures on one side of the rule's limit."""
        return shots(album.shot(row, f"{rule.column} {row['value'] + 0.0:.5g}") for row in rows)

    stays, goes = v.stays.rows(), v.goes.rows()
    if not goes:
        return f"<h3>Nearest to being dropped by {escape(rule.text())}</h3>{side(stays)}" if stays else ""
    title = f"<h3>On both sides of {escape(rule.text())}</h3>"
    kept = f"<div><h4>Just kept</h4>{side(stays)}</div>" if stays else ""
    return f'{title}<div class="edge">{kept}<div><h4>Just dropped</h4>{side(goes)}</div></div>'


def _dropped(result: Result, gathered: Gathered, album: Album) -> str:
    parts = []
    for reason in _order(result, gathered):
        column = next((s.rule.column for s in result.steps if s.rule and s.label == reason), None)
        inner = []
        for row in gathered.examples[reason].rows():
            value = row.get(column) if column else None
            note = f"{column} {value + 0.0:.5g}" if isinstance(value, float) else f"{column} {value}" if value is not None else ""
            if column in gathered.sizes and value is not None:
                note = f"as {result.row(value)['id']}"
            note = note or next(iter(row["errors"] or []), "")
            inner.append(album.shot(row, escape(note[:120])))
        parts.append(f"<h3>{escape(reason)} <span class='note'>{counted(gathered.first[reason], 'row')}</span></h3>{shots(inner)}")
    return "".join(parts)


def _groups(result: Result, gathered: Gathered, album: Album) -> str:
    parts = []
    for column, sizes in gathered.sizes.items():
        if not sizes:
            continue
        note = f"{counted(len(sizes), 'group')}, {counted(sizes.total(), 'row')} removed; the largest:"
        parts.append(f"<h3>{escape(column)} <span class='note'>{note}</span></h3>")
        for target, size in largest(sizes):
            first = result.row(target)
            state = "kept" if first["kept"] else f"itself dropped later: {first['reason']}"
            inner = [album.shot(first, escape(state), "first")]
            inner += [album.shot(result.row(row), escape(result.row(row)["id"])) for row in gathered.groups[column][target]]
            more = size - len(gathered.groups[column][target])
            rest = f'<p class="note">and {more:,} more</p>' if more else ""
            note = f"{size + 1:,} similar rows, of which {escape(first['id'])} stays"
            parts.append(f'<div class="group"><p class="note">{note}</p>{shots(inner)}{rest}</div>')
    return "".join(parts)


def _words(gathered: Gathered) -> str:
    parts = []
    for column, before in gathered.before.items():
        if not before:
            continue
        after = gathered.after.get(column, Counter())
        top = [name for name, _ in sorted(before.items(), key=lambda pair: (-pair[1], pair[0]))[:NAMES]]
        label = f"{column}: {counted(len(before), 'value')} before, {len(after):,} after; most frequent {top[0]}"
        drawn = before_after(top, [before[n] for n in top], [after[n] for n in top], label)
        caption = f"{len(before):,} different before, {len(after):,} after"
        if len(before) > NAMES:
            head = sorted(before, key=lambda n: -before[n])[: max(1, len(before) // 100)]
            was, now = (sum(c[n] for n in head) / max(1, c.total()) for c in (before, after))
            shares = [share(round(1e4 * part), 10_000) for part in (was, now)]
            caption += f"; the most frequent hundredth has {shares[0]} of the mentions before, {shares[1]} after"
            lost = [n for n in before if not after[n]]
            if lost:
                some = ", ".join(sorted(lost, key=lambda n: (-before[n], n))[:8])
                caption += f"; {len(lost):,} no longer occur, such as {some}"
        parts.append(f"<h3>{escape(column)}</h3>{figure(drawn, escape(caption) + '.')}<br>")
    return "".join(parts)


def _errors(gathered: Gathered) -> str:
    if not gathered.errors:
        return ""
    rows = [[escape(reason[:200]), f"{count:,}"] for reason, count in gathered.errors.most_common(12)]
    more = f"<p class='note'>and {len(gathered.errors) - 12:,} other messages</p>" if len(gathered.errors) > 12 else ""
    return table(["reason", "rows"], rows, "Errors") + more


def _cost(result: Result) -> str:
    path = result.path / "costs.json"
    costs = read_json(path) if path.is_file() else {"operators": {}}
    total = sum(c["seconds"] for c in costs["operators"].values())
    if not total:
        return ""
    rows = []
    for name, cost in sorted(costs["operators"].items(), key=lambda pair: -pair[1]["seconds"]):
        rate = f"{cost['rows'] / cost['seconds']:,.0f}" if cost["rows"] and cost["seconds"] else "–"
        rows.append(
            [escape(name), f"{cost['seconds']:.3g}", share(round(1e4 * cost["seconds"] / total), 10_000), f"{cost['rows']:,}", rate]
        )
    caption = (
        f"Seconds of worker time, {counted(costs['workers'], 'worker')} ({escape(costs['runner'])}), "
        f"{escape(costs['date'])}; over all calls "
        "on this directory. Images are read and decoded once for adjacent operators."
    )
    return figure(table(["operator", "seconds", "share", "rows", "rows/s"], rows, "Cost"), caption)


def _again(result: Result) -> str:
    command = f"diptych curate {result.path}/plan.yaml --data {shlex.quote(result.manifest['data'])} --out {result.path}"
    some = next((s for s in result.manifest["shards"] if s["rows"]), None)
    row = result.row(some["shard"] << 32)["id"] if some else "ID"
    lines = [
        f"{command}   # again: does nothing unless plan or data changed",
        f"diptych curate explain {shlex.quote(row)} --out {result.path}   # why was this row kept or dropped",
        f"diptych curate diff {result.path} OTHER   # what changed between two results, and why",
    ]
    plan = "<details><summary><h3>The plan with every default</h3></summary>"
    plan += f"<pre><code>{escape(result.plan.to_yaml())}</code></pre></details>"
    return f"<pre><code>{escape(chr(10).join(lines))}</code></pre>{plan}"
