"""Heads that judge all images of a call together: propagation over neighbours, and caches of the images themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.semi_supervised import LabelSpreading

from diptych.choose.ways.unlabelled.propagate import DynamicAdapter, LabelPropagation
from diptych.choose.ways.zeroshot import ZeroShot
from diptych.inference.transductive import Propagation, Stream, spread
from transfer_fixture import world
from ways_fixture import softmax


def plain_graph(texts: np.ndarray, images: np.ndarray, k: int, gamma: float) -> np.ndarray:
    names = len(texts)
    one_way = np.zeros((names + len(images),) * 2)
    for i, image in enumerate(images):
        others = sorted((j for j in range(len(images)) if j != i), key=lambda j: -float(image @ images[j]))
        for j in others[:k]:
            one_way[names + i, names + j] = max(0.0, float(image @ images[j]))
        for c in sorted(range(names), key=lambda c: -float(image @ texts[c]))[:k]:
            one_way[names + i, c] = max(0.0, float(image @ texts[c])) ** gamma
    return one_way + one_way.T


@pytest.mark.parametrize("texts", [True, False])
def test_propagation_is_label_spreading_over_the_graph(texts: bool) -> None:
    w = world(classes=4, shots=5, unlabelled=6, test=8, noise=2.0, width=12)
    names = w.support.texts if texts else np.zeros((0, 12), dtype=np.float32)
    keys = np.concatenate([w.support.x, w.support.unlabelled])
    values = np.concatenate([w.support.onehot, np.zeros((24, 4), dtype=np.float32)])
    head = Propagation(names, keys, values, k=3, gamma=4.0, alpha=0.7)
    graph = plain_graph(names, np.concatenate([keys, w.x]), 3, 4.0)
    assert np.allclose(head.graph(w.x).toarray(), graph, atol=1e-6)
    labels = np.concatenate([np.arange(len(names)), w.support.y, np.full(24 + len(w.x), -1)])
    oracle = LabelSpreading(kernel=lambda a, b: graph, alpha=0.7, max_iter=10000, tol=1e-14)
    oracle.fit(np.zeros((len(graph), 1)), labels)
    assert np.allclose(softmax(head.logits(w.x)), oracle.label_distributions_[-len(w.x) :], atol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.95])
def test_spreading_solves_the_linear_system(alpha: float) -> None:
    import scipy.sparse

    rng = np.random.default_rng(0)
    w = rng.random((12, 12)) * (rng.random((12, 12)) < 0.4)
    w = w + w.T
    w[3], w[:, 3] = 0, 0  # a node without edges
    degree = w.sum(1)
    root = np.array([d**-0.5 if d else 0.0 for d in degree])
    seeds = rng.random((12, 3))
    expected = np.linalg.solve(np.eye(12) - alpha * root[:, None] * w * root, seeds)
    assert np.allclose(spread(scipy.sparse.csr_matrix(w), seeds, alpha), expected, atol=1e-9)


def test_neighbours_of_one_image_and_of_equal_ones() -> None:
    w = world(classes=2, shots=1, unlabelled=1)
    head = LabelPropagation(k=5).fit(w.support)
    assert head.logits(w.x[:1]).shape == (1, 2) and np.isfinite(head.logits(w.x[:1])).all()
    assert np.isfinite(head.logits(np.repeat(w.x[:1], 9, 0))).all()


def plain_stream(x: np.ndarray, head: Stream, order: np.ndarray) -> np.ndarray:
    """TDA as the paper describes it, image by image, with lists."""
    positive: dict[int, list[tuple[float, np.ndarray]]] = {}
    negative: dict[int, list[tuple[float, np.ndarray, list[bool]]]] = {}
    result = np.zeros((len(x), len(head.weight)))
    for i in order:
        logits = head.weight.astype(np.float64) @ x[i]
        p = softmax(logits)
        entropy = -float(sum(q * math.log(q) for q in p))
        label = int(np.argmax(logits))
        positive.setdefault(label, []).append((entropy, x[i]))
        positive[label] = sorted(positive[label], key=lambda item: item[0])[: head.shots]
        if head.low < entropy / math.log2(len(p)) < head.high:
            negative.setdefault(label, []).append((entropy, x[i], [head.mask < q < 1 for q in p]))
            negative[label] = sorted(negative[label], key=lambda item: item[0])[: head.negative_shots]
        for c, held in positive.items():
            for _, key in held:
                logits[c] += head.alpha * math.exp(-head.beta * (1 - float(key @ x[i])))
        for own in negative.values():
            for _, key, classes in own:
                for c, likely in enumerate(classes):
                    logits[c] -= head.negative_alpha * math.exp(-head.negative_beta * (1 - float(key @ x[i]))) * likely
        result[i] = logits
    return result


def test_tda_is_the_papers_loop() -> None:
    w = world(classes=4, test=25, noise=2.0, shift=1.5)
    head = Stream((8 * w.support.texts).astype(np.float32), shots=2, negative_alpha=0.5, seed=3)
    order = np.random.default_rng(3).permutation(len(w.x))
    expected = plain_stream(w.x, head, order)
    assert np.allclose(head.logits(w.x), expected, atol=1e-4)
    without = Stream(head.weight, shots=2, negative_alpha=0.0, seed=3)
    assert np.abs(without.logits(w.x) - expected).max() > 0.1  # the negative cache held something


def test_tda_with_empty_caches_is_zero_shot() -> None:
    w = world()
    head = DynamicAdapter(alpha=0.0, negative_alpha=0.0).fit(w.support)
    assert np.allclose(head.logits(w.x), ZeroShot().fit(w.support).logits(w.x), atol=1e-4)


def test_both_gain_where_images_cluster_and_names_are_off() -> None:
    gains: dict[type, list[float]] = {LabelPropagation: [], DynamicAdapter: []}
    for seed in range(3):
        w = world(shift=2.0, noise=1.2, seed=seed)
        gains[LabelPropagation].append(w.accuracy(LabelPropagation().fit(w.support.rows(np.arange(0)))) - w.zeroshot)
        gains[DynamicAdapter].append(w.accuracy(DynamicAdapter(alpha=4.0).fit(w.support)) - w.zeroshot)
    assert np.mean(gains[LabelPropagation]) > 0.1  # without any labelled image: ZLaP
    assert np.mean(gains[DynamicAdapter]) > 0.015


def test_labelled_images_help_propagation() -> None:
    w = world(shift=2.0, noise=1.5)
    assert w.accuracy(LabelPropagation(alpha=0.8).fit(w.support)) > w.zeroshot + 0.1
