"""Déjà vu: does a model know of a training image what its caption does not say (Jayaraman et al., arXiv:2402.02103)?

The caption's embedding finds its k nearest images in a public set disjoint from the training data; the objects predicted
are those of these images. A model that did not see the sample, the reference, tells what the caption alone gives away.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np


def nearest(captions: np.ndarray, public: np.ndarray, k: int, block: int = 1024) -> np.ndarray:
    """Indices [N, k] of the k public images of the highest cosine, from embeddings [N, E] and [M, E]; a tie goes to the lower index."""
    if not 1 <= k <= len(public):
        raise ValueError(f"k = {k} nearest of {len(public)} public images")
    public, found = _unit(public), []
    for start in range(0, len(captions), block):
        similarity = _unit(captions[start : start + block]) @ public.T
        found.append(np.argsort(-similarity, axis=1, kind="stable")[:, :k])
    return np.concatenate(found) if found else np.zeros((0, k), dtype=np.int64)


def predicted_objects(neighbours: np.ndarray, public_objects: Sequence[Collection[str]]) -> list[set[str]]:
    """The union of the objects of each sample's neighbours."""
    return [set().union(*(public_objects[j] for j in row)) for row in neighbours]


def precision_recall(predicted: Sequence[Collection[str]], true: Sequence[Collection[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Of each sample, float [N] each; 0 where nothing is predicted. Raises ValueError for a sample without objects."""
    precision, recall = [], []
    for i, (said, is_there) in enumerate(zip(predicted, true, strict=True)):
        if not is_there:
            raise ValueError(f"sample {i} has no objects to be recovered")
        hits = len(set(said) & set(is_there))
        precision.append(hits / len(set(said)) if said else 0.0)
        recall.append(hits / len(set(is_there)))
    return np.array(precision), np.array(recall)


def population_gap(target: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """sign(target − reference) of each sample, float [N]. Its mean is PPG for precisions and PRG for recalls:
    the share of samples where the target does better less that where the reference does."""
    return np.sign(np.round(np.asarray(target) - np.asarray(reference), 12)) + 0.0


def recall_curve(recall: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Share of samples with at least each recall; float [T]."""
    return (np.asarray(recall)[None, :] >= np.asarray(thresholds)[:, None] - 1e-12).mean(1)


def area_between(target: np.ndarray, reference: np.ndarray) -> float:
    """Signed area between the two recall curves over [0, 1]: positive if the target recovers more.

    The area under a curve P(recall ≥ x) is the mean recall, so this is the difference of the means.
    """
    return float(np.mean(target) - np.mean(reference))


def _unit(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, dtype=np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
