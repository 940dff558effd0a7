"""Sections of some tasks: the gain from the picture, groups, frequency of concepts."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from diptych.benchmarks.probes import frequency
from diptych.benchmarks.statistics import mean
from diptych.core.errors import counted
from diptych.report.columns import number
from diptych.report.drawing.charts import Series, chart, dots
from diptych.report.drawing.marks import escape, figure, key
from diptych.report.drawing.plots import legend
from diptych.report.pages.explain import explain_task
from diptych.report.read import Comparison, Measure
from diptych.report.records import finite
from diptych.report.sections import harm
from diptych.report.sections.answers import Answers, TaskAnswers
from diptych.report.sections.invented import invented
from diptych.report.sections.reading import print_sizes

CONCEPTS = 5  # fewer show no trend


def sections(comparison: Comparison, g: TaskAnswers, probe_texts: bool) -> list[tuple[str, str, str]]:
    """(id, title, HTML) of each section; empty HTML if the task does not have it."""
    kind = explain_task(g.task)
    return [
        ("harms", "Kinds of harm", harm.harms(comparison, g, probe_texts) if kind == explain_task("redteam") else ""),
        ("alpha", "The language prior", priors(g) if kind == explain_task("priors") else ""),
        (
            "groups",
            "Who is preferred",
            preferences(comparison, g) if kind in (explain_task("bias"), explain_task("bias-table")) else "",
        ),
        ("looking", "What looking adds", looking(comparison, g)),
        ("invented", "What is not there", invented(g)),
        ("print", "Large and small print", print_sizes(g) if kind == explain_task("read") else ""),
        ("frequency", "Frequent and rare concepts", frequencies(g)),
    ]


def panel(a: Answers, note: str, drawn: str) -> str:
    """The panel of one recipe, HTML."""
    return f'<div class="panel"><h3>{key(a.index, a.recipe.label)}</h3><p class="gap">{note}</p>{drawn}</div>'


def panels(parts: Iterable[str], caption: str) -> str:
    """Panels with a caption, HTML; empty without panels."""
    inner = "".join(parts)
    return figure(f'<div class="panels">{inner}</div>', caption) if inner else ""


# ---- the language prior


def looking(comparison: Comparison, g: TaskAnswers) -> str:
    """How much of each main metric a model reaches without the picture, a sentence for each model, HTML."""
    lines = []
    for recipe in comparison.recipes:
        for metric in g.heads:
            m = recipe.measures.get((g.task, metric))
            if m is not None and (sentence := _looking(m)):
                lines.append(f"<li><b>{escape(recipe.label)}</b>, {escape(metric)}: {sentence}</li>")
    if not lines:
        return ""
    caption = (
        "Blind: the same questions about a grey picture, so that only the wording helps. Its share of the gain over chance is what "
        "this test rewards without the picture; the rest needs the picture."
    )
    many = f"<details><summary>{len(lines)} measures</summary><ul>{''.join(lines)}</ul></details>"
    return figure(many if len(lines) > 6 else f"<ul>{''.join(lines)}</ul>", caption)


def _looking(m: Measure) -> str:
    blind = m.controls.get("blind")
    if blind is None or m.chance is None or not m.higher_is_better or not m.better_than_chance:
        return ""
    share = (blind - m.chance) / (m.value - m.chance)
    part = "nothing" if share <= 0 else "all" if share >= 1 else f"{share:.0%}"
    return (
        f"chance {number(m.chance)}, blind {number(blind)}, with the picture {number(m.value)}: "
        f"{part} of the gain over chance does not need the picture."
    )


def priors(g: TaskAnswers) -> str:
    """The effect of correcting for the language prior, HTML."""
    from diptych.benchmarks.probes.priors import ALPHAS, corrected, credits_at, prior_credit

    parts = []
    for a in g.answers:
        rows = sorted(a.records, key=lambda r: str(r["item"]))
        if not rows or any("blind_scores" not in r for r in rows):
            continue
        curve = [mean(credits_at(rows, alpha)) for alpha in ALPHAS]
        blind = mean([prior_credit(r) for r in rows])
        best, honest = ALPHAS[int(np.argmax(curve))], mean(corrected(rows))
        value_text = f"plain {number(curve[0])}, prior alone {number(blind)}, corrected {number(honest)} %"
        drawn = chart(
            [Series(a.recipe.label, ALPHAS, curve, a.index)],
            "α, how much of the prior is subtracted",
            "right, %",
            label=f"{a.recipe.label}: {value_text}; highest at α = {best:g}",
            y_range=(0, 1),
            percent=(False, True),
            level=blind,
        )
        parts.append(panel(a, f"<b>{escape(value_text)}</b>", drawn))
    caption = (
        "The share of pictures for which the true sentence scores higher than the false one after subtracting α times the prior; "
        "dashes: the prior alone. The prior is the score with a grey picture, unless the task names another (noise, a language "
        "model). “Corrected” chooses α on one half of the items for the other, so it can be below the best point of the curve. If "
        "the dashes are far from 50, the false sentences are unlikely by "
        "themselves, and the plain score rewards reading."
    )
    return panels(parts, caption)


# ---- groups


def preferences(comparison: Comparison, g: TaskAnswers) -> str:
    """The preference for each group on contrast sets, and the association of each group with each sentence, HTML."""
    parts, signed = [], False
    for index, recipe in enumerate(comparison.recipes):
        measures = [m for (task, _), m in recipe.measures.items() if task == g.task and m.bounded]
        liked = [m for m in measures if m.metric.startswith("preference/")]
        drawn = ""
        if liked:
            rows = [(m.metric.partition("/")[2], m.value, m.low, m.high) for m in liked]
            drawn = dots(rows, label=_label(recipe.label, rows, True), reference=liked[0].chance, index=index)
        by_text: dict[str, list[Measure]] = {}
        for m in (m for m in measures if m.metric.startswith("association/")):
            by_text.setdefault(m.metric.split("/", 2)[2], []).append(m)
        for words, ms in by_text.items():
            signed = True
            rows = [(m.metric.split("/", 2)[1], m.value, m.low, m.high) for m in ms]
            reach = max(0.5, *(abs(v) for _, *vs in rows for v in vs))
            drawn += f'<p class="query">“{escape(words)}”</p>' + dots(
                rows,
                label=_label(f"{recipe.label}, {words}", rows, False),
                span=(-reach, reach),
                reference=0.0,
                index=index,
                percent=False,
            )
        if drawn:
            parts.append(f'<div class="panel"><h3>{key(index, recipe.label)}</h3>{drawn}</div>')
    if signed:
        caption = (
            "The mean score of the group’s pictures for a sentence that names no group, minus that of the others, in standard "
            "deviations. An interval without 0 (dashes) is a difference between these pictures, of unknown cause."
        )
    else:
        caption = (
            "The share of sets in which the picture of this group fits the right words best, although they do not mention it; "
            "dashes: no preference. An interval without the dashes is a preference. With many groups one interval in twenty "
            "excludes them by chance."
        )
    return panels(parts, caption)


def _label(who: str, rows: list[tuple[str, float, float, float]], percent: bool) -> str:
    values = ", ".join(f"{name} {100 * v:.1f} %" if percent else f"{name} {v:.2f}" for name, v, *_ in rows)
    return f"{who}: {values}"


# ---- frequency


def frequencies(g: TaskAnswers) -> str:
    """Accuracy on a concept against its frequency in training, HTML, from records with ``frequency`` and a concept."""
    parts = []
    for a in g.answers:
        by_concept: dict[str, tuple[float, list[float]]] = {}
        for record in a.records:
            head, count = g.head_of(a, str(record["item"])), finite(record.get("frequency"))
            if head is None or count is None or count < 0:
                continue
            name = str(record.get("concept") or record.get("class") or record.get("label") or f"{count:g}")
            by_concept.setdefault(name, (count, []))[1].append(a.credits[head][str(record["item"])])
        if len(by_concept) < CONCEPTS:
            continue
        counts, accuracy = np.array([c for c, _ in by_concept.values()]), np.array([mean(v) for _, v in by_concept.values()])
        bins = frequency.log_bins(counts, accuracy)
        raw, binned = frequency.correlation(counts, accuracy), frequency.binned_correlation(counts, accuracy)
        gain = frequency.slope(counts, accuracy)
        value_text = f"r {raw:.2f} over concepts, {binned:.2f} over bins" if np.isfinite(raw) else "does not vary"
        gained = f"; ten times the data: {100 * gain:+.1f} points" if np.isfinite(gain) else ""
        points = Series("concepts", counts, accuracy, 6, "points")
        means = Series(a.recipe.label, [b.frequency for b in bins], [b.accuracy for b in bins], a.index, "both")
        drawn = chart(
            [points, means],
            "times seen in training",
            "right, %",
            label=f"{a.recipe.label}: accuracy against frequency of {counted(len(counts), 'concept')}: {value_text}{gained}",
            y_range=(0, 1),
            log_x=True,
            percent=(False, True),
        )
        unseen = int((counts == 0).sum())
        never = f"; {unseen} not in training" if unseen else ""
        note = f"<b>{escape(value_text)}</b> <span class='note'>{counted(len(counts), 'concept')}{gained}{never}</span>"
        parts.append(panel(a, note, drawn))
    if not parts:
        return ""
    signs = legend(
        (['<circle class="point c6" cx="13" cy="8" r="3.5"/>'], "a concept"),
        (["<path class='curve c0' d='M1 8L25 8'/>"], "mean of a bin"),
    )
    caption = (
        "Accuracy on each concept by its frequency in training, on a logarithmic scale, with means of bins of half a power of ten. "
        "A straight rise is the log-linear law: each step costs ten times the data. The correlation over bins is higher, since "
        "averaging hides the scatter. It is a correlation: rare concepts may also be harder to draw or to name."
    )
    return signs + panels(parts, caption)
