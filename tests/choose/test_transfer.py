"""What all ways of transfer have in common: few pictures, classes without pictures, two classes, saving, speed."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diptych.choose.select import choose_settings, learned
from diptych.choose.ways import TRANSFER, Support, Way, way_named
from diptych.choose.ways.unlabelled.pseudo import PseudoLabels
from diptych.core.errors import DiptychError
from diptych.inference.heads import load_head
from transfer_fixture import world


def quick(way: type[Way]) -> Way:
    """The way with few steps."""
    return way(**({"steps": 4} if hasattr(way, "steps") else {}))


ways = pytest.mark.parametrize("way", TRANSFER, ids=lambda way: way.name)


@ways
def test_has_what_tables_show(way: type[Way]) -> None:
    assert way_named(way.name) is way
    assert way.about and "arXiv" in way.cite and way.__doc__


@ways
def test_two_classes_one_picture_each_and_classes_without(way: type[Way]) -> None:
    for w, rows in (
        (world(classes=2, shots=3), slice(None)),
        (world(classes=4, shots=1), slice(None)),
        (world(classes=4, shots=3), np.flatnonzero(np.repeat(np.arange(4), 3) != 2)),
        (world(classes=4, shots=3), np.arange(3)),  # one class alone has pictures
    ):
        support = replace(w.support, x=w.support.x[rows], y=w.support.y[rows])
        logits = np.asarray(quick(way).fit(support).logits(w.x))
        assert logits.shape == (len(w.x), support.classes) and np.isfinite(logits).all()
        assert np.isfinite(quick(way).fit(replace(support, unlabelled=None)).logits(w.x)).all()


@ways
def test_is_saved_and_loaded(way: type[Way], tmp_path: Path) -> None:
    w = world(classes=4, shots=4)
    head = quick(way).fit(w.support)
    data = head.save(tmp_path)
    assert ":" not in data["kind"]
    assert np.array_equal(load_head(tmp_path, data).logits(w.x), head.logits(w.x))


@ways
def test_judges_images_together_only_if_it_says_so(way: type[Way]) -> None:
    w = world(classes=4, shots=4, noise=2.0, shift=1.0)
    head = quick(way).fit(w.support)
    assert head.together == way.transductive
    whole, parts = head.logits(w.x), np.concatenate([head.logits(w.x[:30]), head.logits(w.x[30:])])
    assert np.allclose(whole, parts, atol=1e-3) != way.transductive


@ways
def test_reads_no_more_than_it_says(way: type[Way]) -> None:
    support = world(classes=4, shots=4).support
    blind = Support(support.x, support.y, support.names, unlabelled=support.unlabelled)
    if way.needs_text:
        with pytest.raises(DiptychError, match="no text vectors"):
            quick(way).fit(blind)
    else:
        assert np.isfinite(quick(way).fit(blind).logits(support.x)).all()
    if not way.needs_images:
        assert np.array_equal(
            quick(way).fit(support.rows(np.arange(0))).logits(support.x), quick(way).fit(support).logits(support.x)
        )


@ways
def test_does_not_change_what_it_is_given_and_repeats(way: type[Way]) -> None:
    support = world(classes=4, shots=4).support
    assert support.prompts is not None and support.unlabelled is not None
    before = [a.copy() for a in (support.x, support.y, support.prompts, *support.described, support.unlabelled)]
    first = quick(way).fit(support).logits(support.x)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(before, (support.x, support.y, support.prompts, *support.described, support.unlabelled), strict=True)
    )
    assert np.array_equal(first, quick(way).fit(support).logits(support.x))


@ways
def test_settings_are_chosen_by_cross_validation(way: type[Way]) -> None:
    w = world(classes=4, shots=5, noise=1.5)
    choice = choose_settings(way, w.support, folds=2)
    assert np.isfinite(choice.logits).all() and 0 <= choice.accuracy <= 1
    head = learned(way, w.support, choice)
    assert w.accuracy(head) > 0.5


@pytest.mark.parametrize("width", [512])
@ways
def test_learns_ten_classes_of_sixteen_pictures_in_seconds(way: type[Way], width: int) -> None:
    w = world(width=width, noise=3.0)
    start = time.process_time()
    way().fit(w.support).logits(w.x)
    assert time.process_time() - start < 10  # seconds of one core; about 2 at most on an idle one


@pytest.mark.parametrize("way", [way for way in TRANSFER if way.needs_images and way is not PseudoLabels], ids=lambda way: way.name)
def test_learns_from_labels(way: type[Way]) -> None:
    """Those that need no names do so without them, too."""
    w = world(classes=4, shots=12, noise=1.0)
    right = w.accuracy(way().fit(w.support))
    assert right > 0.9
    if not way.needs_text:
        blind = Support(w.support.x, w.support.y, w.support.names)
        assert w.accuracy(way().fit(blind)) > 0.85


@pytest.mark.parametrize("name", ["wise", "upl", "entropy", "label-propagation", "tda", "proapo"])
def test_shuffled_labels_are_chance(name: str) -> None:
    """The mean accuracy out of fold over the seeds is within 3 standard errors of chance; the slow tests do all ways."""
    found = []
    for seed in range(12):
        w = world(classes=5, shots=6, width=24, noise=2.0, seed=seed, unlabelled=6)
        shuffled = replace(w.support, y=np.random.default_rng(seed).permutation(w.support.y))
        found.append(choose_settings(way_named(name), shuffled, folds=3).accuracy)
    error = np.std(found, ddof=1) / len(found) ** 0.5
    assert abs(np.mean(found) - 0.2) <= 3 * error, found
