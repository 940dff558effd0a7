"""Ways with a closed solution against scikit-learn and plain float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

from diptych.choose.ways import WAYS
from diptych.core.arrays import unit_rows
from ways_fixture import clusters, softmax

NEW = clusters(5, 20, seed=7, noise=2).x.astype(np.float64)  # vectors of nobody's training images


@pytest.mark.parametrize("k", [1, 3, 20])
def test_knn_is_scikit_learns_with_these_weights(k):
    support = clusters(5, [9, 4, 8, 8, 2], noise=2)
    oracle = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=lambda d: np.exp(-d / 0.07))
    head = WAYS["knn"](k=k).fit(support)
    np.testing.assert_allclose(head.shares(NEW), oracle.fit(support.x.astype(np.float64), support.y).predict_proba(NEW), atol=1e-5)


def test_knn_leaves_no_class_impossible_and_counts_no_more_images_than_there_are():
    support = clusters(3, 2)
    support = replace(support, names=(*support.names, "unseen"), prompts=None)
    head = WAYS["knn"](k=20).fit(support)
    p = np.exp(head.logits(NEW))
    np.testing.assert_allclose(p, (6 * head.shares(NEW) + 0.25) / 7, atol=1e-12)  # 6 votes, and one spread over 4 classes
    np.testing.assert_allclose(p[:, 3], 0.25 / 7)


def test_knn_tries_no_k_above_the_number_of_images():
    assert [s["k"] for s in WAYS["knn"].grid(clusters(2, 2))] == [20, 1, 3]
    assert [s["k"] for s in WAYS["knn"].grid(clusters(5, 20))] == [20, 1, 3, 5, 10]


def test_prototypes_are_scikit_learns_nearest_centroid():
    support = clusters(5, [9, 4, 8, 8, 1], noise=2)
    head = WAYS["prototypes"]().fit(support)
    oracle = NearestCentroid().fit(support.x.astype(np.float64), support.y)
    assert (head.logits(NEW).argmax(1) == oracle.predict(NEW)).all()
    distances = ((NEW[:, None] - oracle.centroids_) ** 2).sum(-1)
    np.testing.assert_allclose(softmax(head.logits(NEW)), softmax(-support.scale / 2 * distances), atol=1e-5)


def test_unit_prototypes_are_scaled_cosines():
    support = clusters(3, 5)
    means = np.stack([support.x[support.y == c].mean(0) for c in range(3)])
    expected = support.scale * NEW @ unit_rows(means).T
    np.testing.assert_allclose(softmax(WAYS["prototypes"](unit=True).fit(support).logits(NEW)), softmax(expected), atol=1e-5)


@pytest.mark.parametrize("shrink", [False, True])
def test_gda_without_texts_is_scikit_learns_discriminant_with_equal_shares(shrink):
    """The covariance there is scatter / N; the paper's shrinkage is theirs with the weight E / (N − 1 + E), and another total."""
    support = clusters(4, [12, 9, 10, 9], noise=2, texts=False)
    n, width = support.x.shape
    weight = width / (n - 1 + width)
    oracle = LinearDiscriminantAnalysis("lsqr", shrinkage=weight if shrink else None, priors=np.full(4, 0.25))
    # its covariance weighs classes by these priors, so the classes' own shares are put in for it and taken out of the offsets
    shares = np.bincount(support.y) / n
    oracle.set_params(priors=shares).fit(support.x.astype(np.float64), support.y)
    expected = (oracle.decision_function(NEW) - np.log(shares)) * (width * (1 - weight) / n if shrink else 1)
    got = WAYS["gda"](alpha=1.0, shrink=shrink).fit(support).logits(NEW)
    np.testing.assert_allclose(got, expected - expected.mean(1, keepdims=True), rtol=1e-3, atol=2e-3 * np.abs(expected).max())


def test_gda_is_the_papers_formula_beside_zero_shot():
    support, alpha = clusters(4, [5, 3, 2, 6]), 0.3
    x = support.x.astype(np.float64)
    n, width = x.shape
    means = [x[support.y == c].mean(0) for c in range(4)]
    centred = np.stack([row - means[c] for row, c in zip(x, support.y, strict=True)])
    cov = np.cov(centred.T)
    inverse = width * np.linalg.pinv((n - 1) * cov + np.trace(cov) * np.eye(width))
    texts = unit_rows(support.prompts.astype(np.float64).mean(1))
    expected = [
        [support.scale * q @ t + alpha * (m @ inverse @ q - m @ inverse @ m / 2) for m, t in zip(means, texts, strict=True)]
        for q in NEW
    ]
    np.testing.assert_allclose(softmax(WAYS["gda"](alpha=alpha).fit(support).logits(NEW)), softmax(np.array(expected)), atol=1e-4)


def test_gda_of_one_picture_a_class_is_the_nearest_picture():
    support = clusters(5, 1, texts=False)
    head = WAYS["gda"](alpha=1.0).fit(support)
    assert (head.logits(NEW).argmax(1) == (NEW @ support.x.T).argmax(1)).all()


def test_gda_of_an_unseen_class_has_the_mean_discriminant_of_the_others():
    seen = clusters(4, 6)
    more = replace(seen, names=(*seen.names, "unseen"), prompts=np.concatenate([seen.prompts, seen.prompts[:1] * [[[-1.0]]]]))
    way = WAYS["gda"](alpha=0.5)
    got, without = way.fit(more).logits(NEW), way.fit(seen).logits(NEW)
    np.testing.assert_allclose(got[:, :4], without, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(got[:, 4], more.scale * NEW @ more.texts[4], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("classes", [2, 4])
def test_probe_is_scikit_learns_regression(classes):
    """Also with fewer images than dimensions, where it is solved in their span, and with the pictures' own classes alone."""
    support = clusters(classes, 6, width=40)
    support = replace(support, y=support.y + 1, names=("unseen", *support.names), prompts=None)
    oracle = LogisticRegression(C=3.0, max_iter=2000, tol=1e-6).fit(support.x.astype(np.float64), support.y)
    new = clusters(classes, 20, width=40, seed=7, noise=2).x.astype(np.float64)
    p = softmax(WAYS["probe"](c=3.0).fit(support).logits(new))
    np.testing.assert_allclose(p[:, 1:], oracle.predict_proba(new), atol=2e-3)
    assert (p[:, 0] == 0).all()


def test_cross_modal_weighs_texts_and_images_alike():
    """12 images and 6 texts: as if each text were there twice."""
    support = clusters(3, 4, templates=2)
    x = np.concatenate([support.x, *[support.prompts.reshape(6, -1)] * 2]).astype(np.float64)
    y = np.concatenate([support.y, *[[0, 0, 1, 1, 2, 2]] * 2])
    oracle = LogisticRegression(C=2.0, max_iter=2000, tol=1e-6).fit(x, y)
    np.testing.assert_allclose(softmax(WAYS["cross-modal"](c=2.0).fit(support).logits(NEW)), oracle.predict_proba(NEW), atol=2e-3)


def test_tip_is_the_papers_formula():
    support = clusters(3, 4)
    texts = unit_rows(support.prompts.mean(1))
    expected = np.zeros((len(NEW), 3))
    for i, q in enumerate(NEW):
        for c in range(3):
            expected[i, c] = support.scale * q @ texts[c]
            expected[i, c] += 2.0 * sum(
                np.exp(-3.0 * (1 - q @ s)) for s, label in zip(support.x, support.y, strict=True) if label == c
            )
    np.testing.assert_allclose(WAYS["tip"](alpha=2.0, beta=3.0).fit(support).logits(NEW), expected, rtol=1e-4, atol=1e-4)
