"""Classification by the names of the classes (Radford et al., arXiv:2103.00020)."""

from __future__ import annotations

import numpy as np

from diptych.benchmarks.metrics.ranking import recall_at, standing

FEWEST_FOR_TOP5 = 6  # of five classes, all are in the top five


def class_embeddings(templates: np.ndarray) -> np.ndarray:
    """Of embeddings [templates, classes, E]: each normalised, averaged over the templates, normalised again; [classes, E]."""
    return _unit(_unit(templates).mean(0))


def topk_credits(scores: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """{"top1": float [N], "top5": …} from scores [N, C] and labels int [N]; ties are shared, no top-5 below six classes."""
    scores = np.asarray(scores)
    found = standing(scores, np.asarray(labels)[:, None] == np.arange(scores.shape[1]))
    return {f"top{k}": recall_at(k, *found) for k in (1, 5) if k == 1 or scores.shape[1] >= FEWEST_FOR_TOP5}


def class_counts(credits: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Per item, in the columns of its class: 1 and credit; float [N, 2 · C]. Mean per-class recall is a function of the sums."""
    counts = np.zeros((len(labels), 2, classes))
    counts[np.arange(len(labels)), 0, labels] = 1
    counts[np.arange(len(labels)), 1, labels] = credits
    return counts.reshape(len(labels), 2 * classes)


def per_class_recall(sums: np.ndarray) -> np.ndarray:
    """Mean over the classes that occur of their recalls, from sums [..., 2 · C]: a rare class counts as much as a common one."""
    seen, right = np.moveaxis(sums.reshape(*sums.shape[:-1], 2, -1), -2, 0)
    recalls = np.divide(right, seen, out=np.zeros_like(right, dtype=np.float64), where=seen > 0)
    return recalls.sum(-1) / np.maximum((seen > 0).sum(-1), 1)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
