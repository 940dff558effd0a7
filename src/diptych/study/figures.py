"""Figures for the report of a study. Each is ``function(runs, *, options) -> HTML``; your own: ``module:function`` in the YAML."""

from __future__ import annotations

import numpy as np

from diptych.core.errors import DiptychError, counted
from diptych.core.extras import need
from diptych.report.drawing.charts import Series, chart
from diptych.report.drawing.marks import dot, escape, figure, line
from diptych.report.drawing.plots import legend
from diptych.study.runs import Runs
from diptych.study.schema import ArmName, MeasureName

SHOWN = 250  # pairs in a map: more overlap, and t-SNE takes longer


def recall_curves(runs: Runs, *, measure: MeasureName) -> str:
    """A panel for each arm of a déjà vu recall measure: the share of members by the recall they reach at least."""
    from diptych.benchmarks.probes.memorization import recall_curve

    x = np.linspace(0, 1, 101)
    panels = []
    for arm in runs.study.measured_on(measure):
        measured = runs.measured(measure, arm)
        arm_recall, reference_recall = (np.concatenate([m.more[who] for m in measured]) for who in ("ours", "reference"))
        series = [
            Series(arm, x, recall_curve(arm_recall, x), 0),
            Series("reference", x, recall_curve(reference_recall, x), 1, "dashed"),
        ]
        label = f"{arm}: mean recall {arm_recall.mean():.2f}, reference {reference_recall.mean():.2f}"
        drawn = chart(series, "recall", "share of members", label=label, x_range=(0, 1), y_range=(0, 1))
        panels.append((arm, drawn))
    signs = legend(
        ([line(1, 8, 25, 8, "curve c0")], "the arm"), ([line(1, 8, 25, 8, "curve c1 again")], "the reference, not trained on them")
    )
    return signs + figure(
        _panels(panels), "All seeds together. The area between the two curves is the difference of the mean recalls."
    )


def frequency_plot(runs: Runs, *, measure: MeasureName) -> str:
    """A panel for each arm of a frequency measure: accuracy on each concept against its count in training."""
    panels = []
    for i, arm in enumerate(runs.study.measured_on(measure)):
        measured = runs.measured(measure, arm)
        counts, accuracy = (np.mean([m.more[k] for m in measured], axis=0) for k in ("counts", "accuracy"))
        bins = np.array(measured[0].more["bins"])
        series = [Series(arm, counts, accuracy, i, "points"), Series("bins", bins[:, 0], bins[:, 1], i, "line")]
        slope = float(np.mean([m.value for m in measured]))
        label = f"{arm}: {counted(len(counts), 'concept')}, ten times the frequency adds {100 * slope:.1f} points"
        panels.append((arm, chart(series, "times shown in training", "accuracy", label=label, log_x=True, y_range=(0, 1))))
    signs = legend(
        ([dot(13, 8, "point c0", 4)], "a concept, mean over seeds"),
        ([line(1, 8, 25, 8, "curve c0")], "means of half decades, first seed"),
    )
    return signs + figure(_panels(panels), "Naming accuracy of each concept on held-out pictures of one object.")


def maps(runs: Runs, *, arms: list[ArmName] | None = None, seed: int = 0) -> str:
    """A t-SNE map of each arm's image and text embeddings, with the modality gap. Needs the task ``embedding``."""
    manifold = need("sklearn.manifold", extra="report", what="the figure maps (t-SNE)")
    from diptych.benchmarks.probes.embedding import modality_gap

    panels = []
    for arm in arms or runs.study.arms:
        stored = runs.files(arm, seed).evaluation().embeddings()
        if stored is None:
            raise DiptychError(f"{arm}: no embeddings; add a measure of the task embedding")
        image, text = (vectors[:SHOWN] for vectors in stored)
        both = np.concatenate([image, text]).astype(np.float64)
        flat = manifold.TSNE(init="pca", perplexity=min(30.0, (len(both) - 1) / 3), random_state=0).fit_transform(both)
        n = len(image)
        series = [Series("image", flat[:n, 0], flat[:n, 1], 0, "points"), Series("text", flat[n:, 0], flat[n:, 1], 1, "points")]
        label = f"{arm}: modality gap {modality_gap(image, text):.2f}"
        panels.append((label, chart(series, "t-SNE 1", "t-SNE 2", label=label)))
    signs = legend(([dot(13, 8, "point c0", 4)], "image"), ([dot(13, 8, "point c1", 4)], "text"))
    return signs + figure(_panels(panels), "t-SNE preserves neighbours; distances between groups mean little.")


def _panels(drawn: list[tuple[str, str]]) -> str:
    inner = "".join(f'<div class="panel"><h3>{escape(name)}</h3>{body}</div>' for name, body in drawn)
    return f'<div class="panels">{inner}</div>'
