"""A page for each task: results with every control, warnings, slices, confidence, differences, examples."""

from __future__ import annotations

import re
from collections.abc import Sequence

from diptych.core.errors import counted
from diptych.report.columns import interval, is_share, number, seeds
from diptych.report.drawing.document import Page, Section
from diptych.report.drawing.marks import emphasise, escape, figure, header, key, scroller
from diptych.report.drawing.pictures import Pictures, changed_settings
from diptych.report.items.section import item_list
from diptych.report.pages.cards import example_cards
from diptych.report.pages.explain import control as about
from diptych.report.pages.explain import explain_task
from diptych.report.read import Comparison, Measure
from diptych.report.sections import extras
from diptych.report.sections.answers import TaskAnswers, gather, task_names
from diptych.report.sections.confidence import calibration, coverage
from diptych.report.sections.differences import differences
from diptych.report.sections.examples import caption_examples, retrieval_examples
from diptych.report.sections.slices import slice_tables
from diptych.report.sections.warnings import RULES, Contrast, Warned, contrasts_of, main_measures, warnings

KINDS = {
    "control": "close to a control", "strong": "a strong control", "few": "few items", "ties": "many ties",
    "unparsed": "unread answers", "nans": "scores that are not numbers",
}  # fmt: skip


def task_pages(comparison: Comparison, pictures: Pictures, probe_texts: bool = False) -> tuple[list[Page], dict[str, list[Warned]]]:
    """The pages, and the warnings by the page's id. probe_texts: show the requests of red-team probes."""
    pages, warned = [], {}
    for task in task_names(comparison):
        gathered = gather(comparison, task)
        if not gathered.answers and not any(key[0] == task for r in comparison.recipes for key in r.measures):
            continue
        task_warnings = warnings(comparison, gathered)
        page = _page(comparison, gathered, task_warnings, pictures, probe_texts)
        pages.append(page)
        warned[page.id] = task_warnings
        pictures.forget()
    return pages, warned


def _page(comparison: Comparison, g: TaskAnswers, task_warnings: list[Warned], pictures: Pictures, probe_texts: bool) -> Page:
    name = re.sub(r"[^\w-]", "-", g.task)
    retrieval = retrieval_examples(comparison) if g.task == "retrieval" else ""
    written = caption_examples(comparison) if g.task == "captions" else ""
    examples = "" if retrieval or written else example_cards(g, pictures)
    sections = [
        ("results", "Results and controls", results(comparison, g)),
        *((kind, title, body) for kind, title, body in extras.sections(comparison, g, probe_texts)),
        ("slices", "Slices", slice_tables(g)),
        ("calibration", "How sure, and how right", calibration(g)),
        ("coverage", "Risk and coverage", coverage(g)),
        ("differences", "Between the models", differences(comparison, g, pictures)),
        ("items", "Item by item", item_list(g, pictures)),
        ("retrieved", "What retrieval finds", retrieval),
        ("written", "What is written", written),
        ("examples", "Examples", examples),
    ]
    lead = f"<h2>{escape(g.task)}</h2>{_lead(g.task)}{settings_note(g)}{warning_box(task_warnings)}"
    mark = counted(len(task_warnings), "warning") if task_warnings else ""
    return Page(f"task-{name}", g.task, [Section(f"{i}-{name}", t, b) for i, t, b in sections], lead, mark)


def _lead(task: str) -> str:
    explanation = explain_task(task)
    if explanation is None:
        return ""
    return (
        f'<p class="lead">{escape(explanation[0])}</p><p class="note not-meant">What it does not show: {escape(explanation[1])}</p>'
    )


def settings_note(g: TaskAnswers) -> str:
    """The settings that differ from the defaults, HTML; by model, if they differ."""
    labels_by_settings: dict[str, list[str]] = {}
    for a in g.answers:
        changed = changed_settings(g.task, a.evaluation)
        labels_by_settings.setdefault(", ".join(f"{name} = {value}" for name, value in changed.items()), []).append(a.recipe.label)
    if not any(labels_by_settings):
        return ""
    lines = [
        changed or "as usual" if len(labels_by_settings) == 1 else f"{', '.join(who)}: {changed or 'as usual'}"
        for changed, who in labels_by_settings.items()
    ]
    return f'<p class="note">Settings: {escape("; ".join(lines))}</p>'


def warning_box(task_warnings: Sequence[Warned]) -> str:
    """The warnings of a page, HTML."""
    if not task_warnings:
        return ""
    listed = "".join(f'<li data-kind="{w.kind}">{emphasise(w.words)}</li>' for w in task_warnings)
    rules = f"<details><summary>How a warning is decided</summary><p class=note>{RULES}</p></details>"
    return f'<aside class="warned" aria-label="Warnings"><h3>Read this before the numbers</h3><ul>{listed}</ul>{rules}</aside>'


def summary(pages: Sequence[Page], warned: dict[str, list[Warned]], labels: dict[str, str]) -> str:
    """The pages with warnings, HTML, for the overview."""
    rows = []
    for page in pages:
        kinds: dict[str, list[str]] = {}
        for w in warned[page.id]:
            who = kinds.setdefault(w.kind, [])
            if labels[w.recipe] not in who:
                who.append(labels[w.recipe])
        kinds_text = "; ".join(f"{KINDS[kind]} ({', '.join(who)})" for kind, who in kinds.items())
        if kinds_text:
            rows.append(f'<li><a href="#{page.id}">{escape(page.title)}</a>: {escape(kinds_text)}</li>')
    if not rows:
        return ""
    return (
        '<aside class="warned"><h3>Before you rely on a number</h3><p>Some results are close to what a control gets, or rest on '
        f"too little. The pages say which and why.</p><ul>{''.join(rows)}</ul></aside>"
    )


# ---- results and controls


def results(comparison: Comparison, g: TaskAnswers) -> str:
    """The table of results with every control, HTML."""
    of_task = [(i, r, [m for k, m in r.measures.items() if k[0] == g.task]) for i, r in enumerate(comparison.recipes)]
    metrics = list(dict.fromkeys(m.metric for _, _, ms in of_task for m in ms))
    if not metrics:
        return ""
    tested: dict[tuple[str, str], list[Contrast]] = {}
    answers = {a.recipe.name: a for a in g.answers}
    for _, recipe, _ in of_task:
        for m in main_measures(recipe, g):
            known = m.metric in g.heads or not g.heads
            tested[recipe.name, m.metric] = contrasts_of(m, answers.get(recipe.name)) if known else []
    controls = list(dict.fromkeys(c for _, _, ms in of_task for m in ms for c in m.controls))
    controls += [c.control for comparisons in tested.values() for c in comparisons if c.control not in (*controls, "chance")]
    controls = list(dict.fromkeys(controls))
    tables = []
    main = [m for m in metrics if any((r.name, m) in tested for _, r, _ in of_task)]
    for some in (main, [m for m in metrics if m not in main]):
        here = [
            c
            for c in controls
            if any(_has(m, c, tested.get((r.name, m.metric), [])) for _, r, ms in of_task for m in ms if m.metric in some)
        ]
        rows = [
            _row(m, key(index, recipe.label), here, tested.get((recipe.name, metric), []))
            for metric in some
            for index, recipe, ms in of_task
            for m in ms
            if m.metric == metric
        ]
        tables.append(_table(g.task, rows, here) if rows else "")
    further = f"<details><summary>Further measures: {len(metrics) - len(main)}</summary>{tables[1]}</details>" if tables[1] else ""
    caption = (
        "Shares in per cent, other measures in their own units, with a 95 % interval (bootstrap over clusters: items of one "
        "picture are drawn together). Under each control of the main measures: model minus control on the same items, with its "
        "interval; <b>≈</b> where the model is not shown to be better. Ties and NaNs are summed over seeds."
    )
    return figure(tables[0], caption, "wide") + further


def _has(m: Measure, control: str, tested: Sequence[Contrast]) -> bool:
    return control in m.controls or any(c.control == control for c in tested)


def _table(task: str, rows: Sequence[str], controls: Sequence[str]) -> str:
    heads = header("Measure", first=True) + header("Model") + header("Value") + header("Chance")
    heads += "".join(header(about(c)[0].capitalize()) for c in controls)
    heads += "".join(header(h, sortable=False) for h in ("n", "Clusters", "Ties", "NaNs"))
    table = f'<table class="sortable"><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return scroller(table, f"Results of {task}, scrolls sideways")


def _row(m: Measure, who: str, controls: Sequence[str], tested: Sequence[Contrast]) -> str:
    share = is_share(m.metric)
    spread = f'<span class="seeds">seeds {seeds(m, share)}</span>' if len(m.seeds) > 1 else ""
    by_control = {c.control: c for c in tested}
    chance = by_control.get("chance")
    cells = [_control(m.chance, chance, share), *(_control(m.controls.get(c), by_control.get(c), share) for c in controls)]
    counts = "".join(f'<td class="num">{v:,}</td>' for v in (m.n, m.clusters, m.ties, m.nans))
    return (
        f'<tr><th scope="row">{escape(m.metric)}</th><td>{who}</td><td class="num" data-v="{m.value:.6g}">'
        f'<span class="value">{number(m.value, share)}</span><span class="ci">{interval(m, share)}</span>{spread}</td>'
        f"{''.join(cells)}{counts}</tr>"
    )


def _control(value: float | None, contrast: Contrast | None, share: bool) -> str:
    value = contrast.against if value is None and contrast is not None else value
    if value is None:
        return '<td class="none" data-v="">—</td>'
    below = ""
    if contrast is not None and contrast.test is not None:
        t = contrast.test
        sign = "+" if t.difference > 0 else ""
        below = f"{sign}{number(t.difference, share)} [{number(t.low, share)} to {number(t.high, share)}]"
        below = f'<span class="ci">{below}</span>'
    near = '<span class="near">≈ control</span>' if contrast is not None and contrast.close else ""
    return f'<td class="num" data-v="{value:.6g}">{number(value, share)}{below}{near}</td>'
