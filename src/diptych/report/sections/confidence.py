"""The calibration of models: reliability diagrams, and risk against coverage."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diptych.benchmarks.metrics.calibration import bin_sums, ece_of_sums, reliability
from diptych.benchmarks.metrics.groups import text_credit
from diptych.benchmarks.metrics.selective import area_under_risk, risk_coverage
from diptych.benchmarks.statistics import Interval, sums_interval
from diptych.core.errors import counted
from diptych.report.drawing.charts import Series, chart
from diptych.report.records import finite, own_scores
from diptych.report.sections.answers import Answers, TaskAnswers
from diptych.report.sections.extras import panel, panels
from diptych.training.run_files import Record

BINS = 10
LEAST = 30  # decisions: fewer give no diagram
GRID = np.logspace(-2.5, 2, 46)  # temperatures to try, in standard deviations of the scores
FITTED_ON = 2000  # the most decisions that a temperature is fitted on


@dataclass
class Decisions:
    """The choices of a model: ``confidence`` and ``credit``, float [n] in [0, 1]."""

    confidence: np.ndarray
    credit: np.ndarray
    clusters: list[str]
    fitted: bool  # the confidence comes from scores with a fitted temperature


def decisions(gathered: TaskAnswers, a: Answers) -> Decisions | None:
    """The decisions of a recipe, from probabilities in the records, else from scores over options; None if there are too few."""
    stated: list[tuple[float, float, str]] = []
    scored: list[tuple[list[float], float, str]] = []
    for record in a.records:
        item = str(record["item"])
        head = gathered.head_of(a, item)
        if head is None:
            continue
        credit = finite((record.get("correct") or {}).get(head))
        if credit is None or head in gathered.lower:
            continue
        sure = probability(record)
        if sure is not None:
            stated.append((sure, credit, a.cluster[item]))
        else:
            scored += [(row, c, a.cluster[item]) for row, c in choices(record, credit)]
    if len(stated) >= LEAST:
        sure_of, credits, clusters = zip(*stated, strict=True)
        return Decisions(np.array(sure_of), np.array(credits), list(clusters), False)
    if len(scored) < LEAST:
        return None
    rows, credits, clusters = zip(*scored, strict=True)
    credit_of = np.array(credits)
    return Decisions(from_scores(rows, credit_of, clusters), credit_of, list(clusters), True)


def probability(record: Record) -> float | None:
    """The probability of the answer in a record; None without one, also if ``confidence`` is marked as not a probability."""
    for name in ("confidence", "probability") if record.get("probabilities") is not False else ("probability",):
        value = finite(record.get(name))
        if value is not None and 0 <= value <= 1:
            return value
    many = record.get("probabilities")
    values = list(many.values()) if isinstance(many, dict) else many
    if isinstance(values, list) and values and all(finite(v) is not None for v in values) and abs(sum(values) - 1) < 0.01:
        return float(max(values))
    yes = finite(record.get("p_yes"))
    return max(yes, 1 - yes) if yes is not None and 0 <= yes <= 1 else None


def choices(record: Record, credit: float) -> list[tuple[list[float], float]]:
    """(scores over options, credit of the choice): one for a list, one for each picture for pictures × texts."""
    scores = own_scores(record)
    if not scores:
        return []
    if not isinstance(scores[0], list):
        return [([float(v) for v in scores], credit)] if len(scores) > 1 and all(finite(v) is not None for v in scores) else []
    if len(scores[0]) < 2 or any(len(row) != len(scores[0]) or any(finite(v) is None for v in row) for row in scores):
        return []
    fits = record.get("fits")
    if fits is not None and np.shape(fits) == np.shape(scores):
        credits = []
        for row, right in zip(scores, fits, strict=True):
            best = [bool(r) for v, r in zip(row, right, strict=True) if v == max(row)]
            if any(right):
                credits.append((row, sum(best) / len(best)))
        return credits
    if len(scores) != len(scores[0]):
        return []
    return [(row, float(c)) for row, c in zip(scores, text_credit(np.array(scores, dtype=float)), strict=True)]


def from_scores(rows: Sequence[Sequence[float]], credit: np.ndarray, clusters: Sequence[str]) -> np.ndarray:
    """The confidence of choices by the softmax of scores over a temperature; float [n].

    Each half of the clusters gets the temperature that fits the other half best (least squared error), so that no decision
    contributes to its own confidence.
    """
    width = max(map(len, rows))
    scores = np.full((len(rows), width), -np.inf)
    for i, row in enumerate(rows):
        scores[i, : len(row)] = np.asarray(row) - max(row)  # the best at 0
    spread = float(np.std(scores[np.isfinite(scores)])) or 1.0
    half = np.array([hashlib.blake2b(str(c).encode(), digest_size=1).digest()[0] % 2 for c in clusters])
    result = np.empty(len(rows))
    for side in (0, 1):
        others = np.flatnonzero(half != side)
        others = others if len(others) else np.arange(len(rows))
        others = others[:: max(1, len(others) // FITTED_ON)]
        errors = [((_top(scores[others], t * spread) - credit[others]) ** 2).mean() for t in GRID]
        result[half == side] = _top(scores[half == side], float(GRID[int(np.argmin(errors))]) * spread)
    return result


def _top(scores: np.ndarray, temperature: float) -> np.ndarray:
    return np.asarray(1 / np.exp(scores / temperature).sum(1))


def ece_interval(d: Decisions) -> Interval:
    """The expected calibration error with its interval."""
    sums = bin_sums(d.confidence, d.credit, BINS)
    return sums_interval(sums, ece_of_sums, d.clusters, share=True)


def calibration(gathered: TaskAnswers) -> str:
    """Reliability diagrams, HTML."""
    parts, fitted = [], False
    for a in gathered.answers:
        d = decisions(gathered, a)
        if d is None:
            continue
        fitted |= d.fitted
        bins = [b for b in reliability(d.confidence, d.credit, BINS) if b.n]
        half = [1.96 * np.sqrt(max(b.accuracy * (1 - b.accuracy), 0.25 / b.n) / b.n) for b in bins]
        points = Series(
            a.recipe.label,
            [b.confidence for b in bins],
            [b.accuracy for b in bins],
            a.index,
            "both",
            [b.accuracy - h for b, h in zip(bins, half, strict=True)],
            [b.accuracy + h for b, h in zip(bins, half, strict=True)],
        )
        v = ece_interval(d)
        value_text = f"ECE {100 * v.value:.1f} points [{100 * v.low:.1f}–{100 * v.high:.1f}]"
        bins_text = "; ".join(f"{counted(b.n, 'answer')} at {b.confidence:.0%}, {b.accuracy:.0%} right" for b in bins)
        drawn = chart(
            [points],
            "how sure, %",
            "right, %",
            label=f"Reliability of {a.recipe.label}: {value_text}. {bins_text}",
            x_range=(0, 1),
            y_range=(0, 1),
            percent=(True, True),
            diagonal=True,
        )
        parts.append(panel(a, f"<b>{value_text}</b> <span class='note'>{counted(len(d.credit), 'answer')}</span>", drawn))
    if not parts:
        return ""
    caption = (
        f"The share of right answers in {BINS} bins of confidence; the dashes are perfect calibration: of the answers with 80 % "
        "confidence 80 % are right. Below the dashes the model is overconfident. ECE (expected calibration error) is the mean "
        "distance from the dashes; with few answers chance alone makes it some points."
    )
    if fitted:
        caption += (
            " These models give scores, not probabilities: a softmax with one temperature, fitted on the other half of the items, "
            "converts them. So the diagram shows whether the <em>order</em> and shape of the scores are reliable, not the raw "
            "scores."
        )
    return panels(parts, caption)


def coverage(gathered: TaskAnswers) -> str:
    """Risk against coverage, HTML."""
    parts = []
    for a in gathered.answers:
        d = decisions(gathered, a)
        if d is None:
            continue
        share, risk = risk_coverage(d.confidence, d.credit)
        area, error = area_under_risk(d.confidence, d.credit), float(1 - d.credit.mean())
        half = float(risk[max(0, len(risk) // 2 - 1)])
        value_text = f"AUC {100 * area:.1f}"
        drawn = chart(
            [Series(a.recipe.label, share, risk, a.index)],
            "answered, % (the surest first)",
            "wrong of these, %",
            label=(
                f"Risk against coverage of {a.recipe.label}: {value_text} (uninformed {100 * error:.1f}); "
                f"answering the surest half {100 * half:.1f} % are wrong, answering all {100 * error:.1f} %"
            ),
            x_range=(0, 1),
            y_range=(0, max(0.05, float(risk.max()) * 1.05)),
            percent=(True, True),
            level=error,
        )
        without = f"uninformed: {100 * error:.1f}; most confident half: {100 * half:.1f} % wrong"
        note = f"<b>{value_text}</b> <span class='note'>{without}</span>"
        parts.append(panel(a, note, drawn))
    if not parts:
        return ""
    caption = (
        "The share of wrong answers (risk), if the model answers only the questions of highest confidence (coverage). If "
        "confidence predicts errors, the curve falls to the left; dashes: an uninformative confidence. AUC: the mean risk over "
        "all coverages, in per cent; lower is better."
    )
    return panels(parts, caption)
