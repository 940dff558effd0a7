"""Pairs of models on the same items: how often only one of them is right, with examples."""

from __future__ import annotations

from typing import Any

from diptych.benchmarks.statistics import PairedTest, paired_test
from diptych.report.columns import SIGNIFICANT, is_share, number, p_holm, p_value
from diptych.report.drawing.marks import escape, figure, header, key, scroller
from diptych.report.drawing.pictures import Pictures
from diptych.report.pages.cards import card, is_private, shuffled
from diptych.report.read import Comparison
from diptych.report.sections.answers import Answers, TaskAnswers, paired

PAIRS = 4  # of models that are shown with examples
EACH = 3  # examples of each direction
PER_PAGE = 36  # pictures


def pairs(gathered: TaskAnswers) -> list[tuple[Answers, Answers]]:
    """The best model by the task's first metric with each of the others."""
    if len(gathered.answers) < 2:
        return []
    metric = gathered.heads[0] if gathered.heads else ""
    have = [a for a in gathered.answers if metric in a.credits]
    if not have:
        return []
    sign = 1 if metric in gathered.lower else -1
    ranked = sorted(have, key=lambda a: sign * sum(a.credits[metric].values()) / len(a.credits[metric]))
    return [(ranked[0], other) for other in ranked[1:]]


def differences(comparison: Comparison, gathered: TaskAnswers, pictures: Pictures) -> str:
    """The table of pairs, with examples, HTML."""
    chosen = pairs(gathered)
    if not chosen:
        return ""
    rows = "".join(_row(comparison, gathered.task, a, b, m) for a, b in chosen for m in gathered.heads if m in b.credits)
    heads = header("A", first=True) + "".join(
        header(h) for h in ("B", "Measure", "A − B", "Only A better", "Only B better", "p", "p, Holm")
    )
    table = f'<table class="sortable"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'
    examples, left = [], PER_PAGE
    for a, b in chosen[:PAIRS] if not is_private(gathered.task) else ():
        html, used = _examples(gathered, a, b, pictures, left)
        left -= used
        examples.append(html)
    caption = (
        "A is the best model by the task’s first metric. Difference in points with its 95 % interval; p of a sign-flip test over "
        "clusters (two-sided), with Holm’s correction over all pairs of one metric, if the comparison stored it. "
        f"Below, up to {EACH} items for each direction, drawn at random from those where one model scores higher than the other."
    )
    return figure(scroller(table, "Differences between models, scrolls sideways") + "".join(examples), caption, "wide")


def _row(comparison: Comparison, task: str, a: Answers, b: Answers, metric: str) -> str:
    x, y, clusters, _ = paired(a.credits.get(metric, {}), b.credits.get(metric, {}), a.cluster)
    if not len(x):
        return ""
    test: PairedTest = paired_test(x, y, clusters)
    share = is_share(metric)
    sign = "+" if test.difference > 0 else ""
    corrected = p_holm(comparison.tests, (task, metric), a.recipe.name, b.recipe.name)
    ps = "".join(f'<td class="num" data-v="{"" if p is None else p}">{p_value(p)}</td>' for p in (test.p, corrected))
    strong = ' class="significant"' if (corrected if corrected is not None else test.p) < SIGNIFICANT else ""
    return (
        f'<tr><th scope="row">{key(a.index, a.recipe.label)}</th><td>{key(b.index, b.recipe.label)}</td><td>{escape(metric)}</td>'
        f'<td data-v="{test.difference:.6g}"><span{strong}>{sign}{number(test.difference, share)}</span>'
        f'<span class="ci">{number(test.low, share)} to {number(test.high, share)}</span></td>'
        f'<td class="num" data-v="{int((x > y).sum())}">{int((x > y).sum())} of {len(x)}</td>'
        f'<td class="num" data-v="{int((y > x).sum())}">{int((y > x).sum())} of {len(x)}</td>{ps}</tr>'
    )


def _examples(gathered: TaskAnswers, a: Answers, b: Answers, pictures: Pictures, left: int) -> tuple[str, int]:
    sides, used = [], 0
    for one, other in ((a, b), (b, a)):
        cards = []
        for record in _better(gathered, one, other):
            shown = pictures.of(gathered.task, one, record)[: max(0, left - used)]
            used += len(shown)
            cards.append(card(gathered, one, record, shown, pictures, other))
        content = "".join(cards) or '<p class="note">None.</p>'
        sides.append(f"<div><h4>{escape(one.recipe.label)} better than {escape(other.recipe.label)}</h4>{content}</div>")
    head = f"<h3>{key(a.index, a.recipe.label)} <span class='note'>against</span> {key(b.index, b.recipe.label)}</h3>"
    return f'<details class="recipe"><summary>{head}</summary><div class="sides">{"".join(sides)}</div></details>', used


def _better(gathered: TaskAnswers, one: Answers, other: Answers) -> list[dict[str, Any]]:
    gains = []
    for record in shuffled(one.records):
        item = str(record["item"])
        head = gathered.head_of(one, item)
        if head is not None and item in other.credits.get(head, {}):
            gain = gathered.goodness(one, head, item) - gathered.goodness(other, head, item)
            if gain > 0:
                gains.append((gain, record))
    return [record for _, record in sorted(gains, key=lambda pair: -pair[0])[:EACH]]
