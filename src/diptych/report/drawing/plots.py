"""The charts of a comparison as inline SVG: loss curves, skill profiles, maps of the embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from diptych.benchmarks.probes.embedding import modality_gap
from diptych.config.budget import Budget
from diptych.core.arrays import unit_rows
from diptych.core.errors import DiptychError, counted
from diptych.core.extras import need
from diptych.report.columns import Column, columns, number
from diptych.report.drawing.charts import ticks
from diptych.report.drawing.marks import COLOURS, cross, diamond, dot, escape, figure, key, line, svg, text
from diptych.report.read import Comparison, Recipe, Run, parse_budget, readable
from diptych.report.records import finite

POINTS = 160  # of a curve: more are not visible
MAPPED = 250  # pairs in a map: more overlap, and t-SNE takes longer


def panels(parts: Sequence[tuple[int, Recipe, str]], kind: str = "panels") -> str:
    """Panels with the recipes as headings, HTML."""
    inner = "".join(f'<div class="panel"><h3>{key(i, r.label)}</h3>{body}</div>' for i, r, body in parts)
    return f'<div class="{kind}">{inner}</div>'


def legend(*entries: tuple[list[str], str]) -> str:
    """A legend: marks with their meanings, HTML."""
    start = '<li><svg viewBox="0 0 26 16" width="26" height="16" aria-hidden="true">'
    listed = "".join(f"{start}{''.join(marks)}</svg>{escape(words)}</li>" for marks, words in entries)
    return f'<ul class="legend">{listed}</ul>'


# ---- loss curves


def loss_curves(comparison: Comparison) -> str:
    """The training loss of every recipe, HTML."""
    budget = parse_budget(comparison.budget)
    parts = []
    for index, recipe in enumerate(comparison.recipes):
        logs = ((run, readable(run.files.metrics, [], comparison.notes)) for run in recipe.runs)
        curves = [(run, curve) for run, log in logs if len((curve := loss_curve(log, budget))[0]) > 1]
        if curves:
            parts.append((index, recipe, _loss_panel(index, recipe, curves)))
    if not parts:
        return ""
    spans = "the budget" if budget else "the run"
    caption = (
        f"Training loss over the share of {spans} spent; the first seed solid, others dashed; an upright hairline begins a stage. "
        "Each panel has its own scale: losses of different kinds cannot be compared in height, only in shape."
    )
    return figure(panels(parts), caption)


def loss_curve(log: Sequence[dict[str, Any]], budget: Budget | None) -> tuple[np.ndarray, np.ndarray, list[tuple[float, str]]]:
    """The share of the budget [n], the loss [n] (means of bins), and where each further stage begins."""
    rows = [r for r in log if finite(r.get("loss")) is not None]
    unit, limit = "seconds", None
    if budget:
        unit, limit = next((u, v) for u, v in vars(budget).items() if v is not None)
    if all(finite(r.get("share")) is not None for r in rows):  # the run's own budget may differ from the comparison's
        unit, limit = "share", 1.0
    elif not all(finite(r.get(unit)) is not None for r in rows):
        unit, limit = "step", None
    x = np.array([finite(r.get(unit)) or 0.0 for r in rows])
    y = np.array([float(r["loss"]) for r in rows])
    if len(x) < 2:
        return x, y, []
    x = x / (limit or max(x.max(), 1e-9))
    names = [str(r.get("stage", "")) for r in rows]
    stages = [(float(x[i]), names[i]) for i in range(1, len(rows)) if names[i] != names[i - 1]]
    bins = np.array_split(np.arange(len(x)), min(POINTS, len(x)))
    return np.array([x[b].mean() for b in bins]), np.array([y[b].mean() for b in bins]), stages


def _loss_panel(
    index: int, recipe: Recipe, curves: list[tuple[Run, tuple[np.ndarray, np.ndarray, list[tuple[float, str]]]]]
) -> str:
    width, height, left, right, top, bottom = 340, 190, 40, 44, 14, 24
    values = np.concatenate([c[1] for _, c in curves])
    low, high = float(values.min()), float(np.quantile(values, 0.995))
    high = high if high > low else low + 1
    end = max(1.0, max(float(c[0].max()) for _, c in curves))

    def sx(v: float) -> float:
        """The pixel of a step, from the left."""
        return left + (width - left - right) * v / end

    def sy(v: float) -> float:
        """The pixel of a loss, from the top; losses above the highest are drawn at the edge."""
        return top + (height - top - bottom) * (1 - (min(v, high) - low) / (high - low))

    body = []
    for tick in ticks(low, high):
        body += [line(left, sy(tick), width - right, sy(tick), "grid"), text(left - 6, sy(tick) + 4, f"{tick:.3g}", "tick", "end")]
    for share in (0, 0.5, 1):
        body.append(text(sx(share), height - 6, f"{share:.0%}", "tick", "middle"))
    for place, stage in curves[0][1][2]:
        body += [line(sx(place), top, sx(place), height - bottom, "stage"), text(sx(place) + 4, top + 9, stage, "tick")]
    for number_of_run, (_, (x, y, _stages)) in enumerate(curves):
        points = "L".join(f"{sx(a):.1f} {sy(b):.1f}" for a, b in zip(x, y, strict=True))
        body.append(f'<path class="curve c{index % COLOURS}{" again" if number_of_run else ""}" d="M{points}"/>')
    x, y, _ = curves[0][1]
    body.append(text(sx(x[-1]) + 5, sy(y[-1]) + 4, f"{y[-1]:.3g}", "tick strong"))
    return svg(width, height, body, f"Training loss of {recipe.label}: from {y[0]:.3g} to {y[-1]:.3g}")


# ---- skills


def skill_profiles(comparison: Comparison) -> str:
    """Every skill of every recipe against chance and controls, HTML."""
    skills = [c for c in columns(comparison) if c.group == "Skills"]
    parts = [
        (i, r, _skill_panel(i, r, skills)) for i, r in enumerate(comparison.recipes) if any(c.key in r.measures for c in skills)
    ]
    if not parts:
        return ""
    signs = legend(
        ([line(1, 8, 25, 8, "range c6"), dot(13, 8, "point c6")], "share right, 95 % interval"),
        ([line(1, 8, 25, 8, "range c6"), dot(13, 8, "hollow c6")], "hollow: interval includes chance"),
        ([line(13, 1, 13, 15, "chance")], "chance"),
        ([diamond(13, 8, "blind")], "blind: without the picture"),
        ([cross(13, 8, "shuffled")], "shuffled: with another’s picture"),
    )
    caption = (
        "A skill is learned when its dot is clear of the chance tick <em>and</em> of the diamond and the cross: "
        "a diamond right of chance means that the wording reveals answers."
    )
    return signs + figure(panels(parts), caption)


def _skill_panel(index: int, recipe: Recipe, skills: list[Column]) -> str:
    width, left, right, row, top = 340, 88, 290, 25, 6
    height = top + row * len(skills) + 22
    colour = f"c{index % COLOURS}"

    def sx(v: float) -> float:
        """The pixel of a share, from the left."""
        return left + (right - left) * min(max(v, 0.0), 1.0)

    body = [line(sx(v), top, sx(v), height - 20, "grid") for v in (0, 0.5, 1)]
    body += [text(sx(v), height - 6, f"{v:.0%}", "tick", "middle") for v in (0, 0.5, 1)]
    values = []
    for place, column in enumerate(skills):
        y = top + row * place + row / 2
        m = recipe.measures.get(column.key)
        body.append(text(left - 10, y + 4, column.label, "label", "end"))
        if m is None:
            body.append(text(sx(0) + 6, y + 4, "not measured", "tick"))
            continue
        if m.chance is not None:
            body.append(line(sx(m.chance), y - 10, sx(m.chance), y + 10, "chance"))
        if "shuffled" in m.controls:
            body.append(cross(sx(m.controls["shuffled"]), y, "shuffled"))
        if "blind" in m.controls:
            body.append(diamond(sx(m.controls["blind"]), y, "blind"))
        body.append(line(sx(m.low), y, sx(m.high), y, f"range {colour}"))
        body.append(dot(sx(m.value), y, f"hollow {colour}" if m.at_chance else f"point {colour}"))
        body.append(text(width - 2, y + 4, f"{'≈ ' if m.at_chance else ''}{number(m.value)}", "figure", "end"))
        values.append(f"{column.label} {number(m.value)}{' (at chance)' if m.at_chance else ''}")
    return svg(width, height, body, f"Skills of {recipe.label} in per cent: {', '.join(values)}", "skills")


# ---- maps


def embedding_maps(comparison: Comparison) -> str:
    """Image and text embeddings of every recipe in two dimensions, HTML."""
    parts = []
    for index, recipe in enumerate(comparison.recipes):
        stored = next((e for run in recipe.runs if (e := readable(run.evaluation.embeddings, None, comparison.notes))), None)
        if stored is None:
            continue
        image, words = (unit_rows(vectors, np.float64) for vectors in stored)
        if len(image) == len(words) >= 3:
            parts.append((index, recipe, _map_panel(index, recipe, image, words)))
    if not parts:
        return ""
    signs = legend(
        ([dot(13, 8, "point c6", 4)], "image"),
        (['<path class="texts" d="M13 3l5 9h-10z"/>'], "text"),
        ([line(1, 8, 25, 8, "pair")], "a pair"),
    )
    caption = (
        "Every image and its caption in two dimensions, fitted on both kinds together. PCA keeps distances as far as two axes can; "
        "t-SNE keeps neighbours, and its distances between groups mean little. The modality gap is the distance between the "
        "centre of all images and the centre of all texts on the unit sphere (0: none; 2: opposite poles)."
    )
    return signs + figure(panels(parts, "panels maps"), caption)


def pca(rows: np.ndarray) -> tuple[np.ndarray, float]:
    """The rows on the first two principal axes [n, 2], and the share of the variance on them."""
    centred = rows - rows.mean(0)
    _, strength, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:2] * np.sign(axes[:2].sum(1, keepdims=True) + 1e-30)
    return centred @ axes.T, float((strength[:2] ** 2).sum() / max((strength**2).sum(), 1e-30))


def _map_panel(index: int, recipe: Recipe, image: np.ndarray, words: np.ndarray) -> str:
    n = len(image)
    gap = modality_gap(image, words)
    flat, kept = pca(np.concatenate([image, words]))
    pick = np.linspace(0, n - 1, min(n, MAPPED)).astype(int)
    both = np.concatenate([image[pick], words[pick]])
    shown = f"{len(pick)} of {n} pairs" if len(pick) < n else counted(n, "pair")
    first = _map(index, flat[pick], flat[n:][pick], f"PCA of the embeddings of {recipe.label}, modality gap {gap:.2f}")
    try:
        near = _neighbours(both)
        second = _map(index, near[: len(pick)], near[len(pick) :], f"t-SNE of the embeddings of {recipe.label}")
    except DiptychError as error:  # the rest of the report does not need scikit-learn
        second = f"<p>{escape(str(error))}</p>"
    return (
        f'<p class="gap">Modality gap <b>{gap:.2f}</b> <span class="note">{shown}</span></p><div class="two">'
        f'<div>{first}<p class="note">PCA, {kept:.0%} of the variance</p></div><div>{second}<p class="note">t-SNE</p></div></div>'
    )


def _neighbours(rows: np.ndarray) -> np.ndarray:
    """t-SNE (van der Maaten & Hinton 2008): rows [n, E] → [n, 2]. Raises DiptychError without scikit-learn."""
    manifold, threads = (need(name, extra="report", what="t-SNE") for name in ("sklearn.manifold", "threadpoolctl"))
    with threads.threadpool_limits(1):  # a few points are not faster on several cores, and much slower on busy ones
        places: np.ndarray = manifold.TSNE(init="pca", perplexity=min(30, (len(rows) - 1) / 3), random_state=0).fit_transform(rows)
        return places


def _map(index: int, image: np.ndarray, words: np.ndarray, label: str) -> str:
    size, margin = 240, 10
    both = np.concatenate([image, words])
    low, high = both.min(0), both.max(0)
    scale = (size - 2 * margin) / max(float((high - low).max()), 1e-9)  # one scale for both axes
    shift = (size - scale * (high - low)) / 2
    a, b = ((x - low) * scale + shift for x in (image, words))
    pairs = "".join(f"M{p[0]:.0f} {p[1]:.0f}L{q[0]:.0f} {q[1]:.0f}" for p, q in zip(a, b, strict=True))
    circles = "".join(f"M{p[0]:.1f} {p[1]:.1f}h0" for p in a)
    triangles = "".join(f"M{q[0]:.1f} {q[1] - 3:.1f}l3 5h-6z" for q in b)
    body = (
        f'<rect class="frame" x=".5" y=".5" width="{size - 1}" height="{size - 1}"/><path class="pair" d="{pairs}"/>'
        f'<path class="images c{index % COLOURS}" d="{circles}"/><path class="texts" d="{triangles}"/>'
    )
    return svg(size, size, [body], label, "map")
