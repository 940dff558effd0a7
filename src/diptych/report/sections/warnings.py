"""Warnings about the reliability of numbers. Each has a fixed rule, which the page shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diptych.benchmarks.statistics import PairedTest, paired_test
from diptych.report.columns import SIGNIFICANT, interval, is_share, number, p_value
from diptych.report.pages.explain import control as about
from diptych.report.read import Comparison, Measure, Recipe
from diptych.report.sections.answers import MOST_HEADS, Answers, TaskAnswers, paired
from diptych.training.run_files import Record

WIDE = 0.20  # an interval of a share wider than this is uninformative
FEW = 30  # clusters: fewer than this
OFTEN = 0.05  # share of items with ties, or of unparsed answers
MOST = 0.5  # share of the gain over chance that a control reaches too

RULES = (
    "<b>Close to a control</b>: a paired test on the same items (signs flipped by cluster, two-sided, 5 %, uncorrected) does not "
    "show the model to be better than the control; without records of items, the control is inside the model’s interval. "
    "<b>A strong control</b>: it beats chance by the same test, and reaches at least half of the model’s gain over "
    f"chance. <b>Few items</b>: fewer than {FEW} clusters, or a 95 % interval wider than {100 * WIDE:.0f} points. <b>Ties</b>, "
    f"<b>unread answers</b>: more than {100 * OFTEN:.0f} % of the items. <b>No numbers</b>: a score was not finite. Only the main "
    "metrics of the task are checked."
)


@dataclass(frozen=True)
class Warned:
    """A warning. kind: control, strong, few, ties, unparsed or nans. words: plain text with ``**`` around names."""

    kind: str
    recipe: str
    metrics: tuple[str, ...]
    words: str
    controls: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contrast:
    """A model compared with a control on one metric. test: None without records of items."""

    metric: str
    control: str
    value: float
    against: float
    test: PairedTest | None
    close: bool


def warnings(comparison: Comparison, gathered: TaskAnswers) -> list[Warned]:
    """The warnings of a task."""
    warned: list[Warned] = []
    by_recipe = {a.recipe.name: a for a in gathered.answers}
    for recipe in comparison.recipes:
        measures = main_measures(recipe, gathered)
        answers = by_recipe.get(recipe.name)
        contrasts = [c for m in measures if m.metric in gathered.heads or not gathered.heads for c in contrasts_of(m, answers)]
        warned += [*_close(recipe, contrasts), *_strong(recipe, measures, contrasts, answers)]
        warned += [*_few(recipe, measures), *_unsure(recipe, measures, answers)]
    return warned


def main_measures(recipe: Recipe, gathered: TaskAnswers) -> list[Measure]:
    """The main metrics of a task, else the first few."""
    own = [m for (task, _), m in recipe.measures.items() if task == gathered.task]
    return [m for m in own if m.metric in gathered.heads] or own[: MOST_HEADS if gathered.heads else 1]


def contrasts_of(m: Measure, answers: Answers | None) -> list[Contrast]:
    """The comparisons of a model with every control and with chance."""
    recorded = answers.controls.get(m.metric, {}) if answers else {}
    names = dict.fromkeys([*m.controls, *recorded])
    contrasts = []
    for name in names:
        test = _tested(m, answers, recorded.get(name))
        against = m.controls.get(name)
        if against is None:
            against = float(np.mean(list(recorded[name].values())))
        contrasts.append(_contrast(m, name, against, test))
    if m.chance is not None:
        test = _tested(m, answers, answers.chance.get(m.metric) if answers else None)
        contrasts.append(_contrast(m, "chance", m.chance, test))
    return contrasts


def _contrast(m: Measure, name: str, against: float, test: PairedTest | None) -> Contrast:
    sign = 1 if m.higher_is_better else -1
    if test is not None:
        close = test.p >= SIGNIFICANT or sign * test.difference <= 0
    else:
        close = m.bounded and sign * against >= sign * (m.low if sign > 0 else m.high)
    return Contrast(m.metric, name, m.value, against, test, close)


def _tested(m: Measure, answers: Answers | None, control: dict[str, float] | None) -> PairedTest | None:
    if answers is None or not control:
        return None
    a, b, clusters, _ = paired(answers.credits.get(m.metric, {}), control, answers.cluster)
    return paired_test(a, b, clusters) if len(a) else None


def _close(recipe: Recipe, contrasts: Sequence[Contrast]) -> list[Warned]:
    """One warning for all metrics that are close to the same controls."""
    by_controls: dict[tuple[str, ...], list[str]] = {}
    for metric in dict.fromkeys(c.metric for c in contrasts):
        near = tuple(c.control for c in contrasts if c.metric == metric and c.close)
        if near:
            by_controls.setdefault(near, []).append(metric)
    warned = []
    for near, metrics in by_controls.items():
        of = [c for c in contrasts if c.close and c.metric in metrics]
        names = [f"{about(name)[0]} ({_values(of, name)})" for name in near]
        against = " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
        values = ", ".join(f"{m} {number(next(c.value for c in of if c.metric == m), is_share(m))}" for m in metrics)
        how = _how(of)
        meant = "; ".join(about(name)[1] for name in near)
        words = f"**{recipe.label}**, {values}: not shown to be better than {against}; {how}. So {meant}."
        warned.append(Warned("control", recipe.name, tuple(metrics), words, near))
    return warned


def _how(contrasts: Sequence[Contrast]) -> str:
    tests = [c.test for c in contrasts if c.test is not None]
    if not tests:
        return "inside the interval; there are no records of items for a test"
    better = [t.p for t in tests if t.difference > 0]
    return f"smallest p {p_value(min(better))}" if better else "not higher on any metric"


def _values(contrasts: Sequence[Contrast], control: str) -> str:
    """The control's value, or its range over the metrics."""
    values = [(c.against, is_share(c.metric)) for c in contrasts if c.control == control]
    low, high = (number(*f(values)) for f in (min, max))
    return low if low == high else f"{low} to {high}"


def _strong(recipe: Recipe, measures: Sequence[Measure], contrasts: Sequence[Contrast], answers: Answers | None) -> list[Warned]:
    warned = []
    for m in measures:
        chance = answers.chance.get(m.metric, {}) if answers else {}
        for c in (c for c in contrasts if c.metric == m.metric and c.control != "chance" and not c.close):
            gain = m.value - (m.chance if m.chance is not None else m.value)
            if not answers or not chance or gain <= 0 or not m.higher_is_better:
                continue
            a, b, clusters, _ = paired(answers.controls.get(m.metric, {}).get(c.control, {}), chance, answers.cluster)
            if not len(a) or (c.against - (m.chance or 0)) < MOST * gain:
                continue
            if (a - b).mean() > 0 and paired_test(a, b, clusters).p < SIGNIFICANT:
                title, _ = about(c.control)
                share = (c.against - (m.chance or 0)) / gain
                words = (
                    f"{m.metric}: the control “{title}” alone reaches {number(c.against)} %, chance is {number(m.chance)} %. "
                    f"That is {share:.0%} of the gain of **{recipe.label}** ({number(m.value)} %) over chance: most of this test "
                    "can be solved without the skill that it is named after."
                )
                warned.append(Warned("strong", recipe.name, (m.metric,), words))
    return warned


def _few(recipe: Recipe, measures: Sequence[Measure]) -> list[Warned]:
    few = [m for m in measures if m.clusters and (m.clusters < FEW or (is_share(m.metric) and m.bounded and m.high - m.low > WIDE))]
    if not few:
        return []
    counts = "; ".join(
        f"{m.metric} {number(m.value, is_share(m.metric))} [{interval(m, is_share(m.metric))}], n = {m.n}" for m in few
    )
    words = f"**{recipe.label}**: too few items for a conclusion: {counts}. Evaluate on more items."
    return [Warned("few", recipe.name, tuple(m.metric for m in few), words)]


def _unsure(recipe: Recipe, measures: Sequence[Measure], answers: Answers | None) -> list[Warned]:
    """Warnings of ties, unparsed answers, and scores that are not numbers."""
    if answers is None:
        return []
    warned = []
    tied = {m.metric: n for m in measures if (n := _tied(answers.records, m.metric)) > OFTEN * max(1, m.n)}
    if tied:
        of = {m.metric: m.n for m in measures}
        listed = ", ".join(f"{k}: {n} of {of[k]} items" for k, n in tied.items())
        words = (
            f"**{recipe.label}**: ties decide {listed}. A tie counts as the probability of a random choice being right; a model "
            "with equal scores does not choose."
        )
        warned.append(Warned("ties", recipe.name, tuple(tied), words))
    lost = [r for r in answers.records if is_unparsed(r)]
    if len(lost) > OFTEN * len(answers.records):
        listed = "; ".join(f"{m.metric} between {_band(answers, m.metric, lost)}" for m in measures if m.metric in answers.credits)
        words = (
            f"**{recipe.label}**: {len(lost)} of {len(answers.records)} answers could not be parsed"
            f"{f'; if all of these were wrong … right, {listed}' if listed else ''}."
        )
        warned.append(Warned("unparsed", recipe.name, tuple(m.metric for m in measures), words))
    broken = sum(bool(r.get("nans")) for r in answers.records)
    if broken:
        words = f"**{recipe.label}**: {broken} of {len(answers.records)} items have scores that are not numbers (NaN or infinite)."
        warned.append(Warned("nans", recipe.name, tuple(m.metric for m in measures), words))
    return warned


def _tied(records: Sequence[Record], metric: str) -> int:
    return sum(bool((r.get("ties") or {}).get(metric)) for r in records)


def is_unparsed(record: Record) -> bool:
    """Whether an answer could not be parsed: ``unparsed`` is true or, without that key, ``parsed`` is null."""
    return bool(record["unparsed"]) if "unparsed" in record else "parsed" in record and record["parsed"] is None


def _band(answers: Answers, metric: str, lost: Sequence[Record]) -> str:
    credits = answers.credits[metric]
    names = {str(r["item"]) for r in lost}
    low, high = (np.mean([end if item in names else c for item, c in credits.items()]) for end in (0.0, 1.0))
    return f"{number(float(low))} and {number(float(high))} %"
