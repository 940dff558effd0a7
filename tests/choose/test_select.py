"""Cross-validation: what is left out stays out, and the rule by which settings are chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest

from diptych.choose.select import (
    TEMPERATURES,
    balanced_accuracy,
    choose_settings,
    fitting_temperature,
    fold_of,
    learned,
    log_loss,
)
from diptych.choose.ways import WAYS, Way
from diptych.inference.heads import Head
from ways_fixture import clusters, cross_entropy


@dataclass(frozen=True)
class Remembered(Head):
    """Names an image as the nearest stored one, of whatever label."""

    keys: np.ndarray
    labels: np.ndarray
    classes: int

    def logits(self, x):
        return 10.0 * np.eye(self.classes)[self.labels[(x @ self.keys.T).argmax(1)]]


@dataclass(frozen=True)
class Memoriser(Way):
    """A way that knows each of its images by heart."""

    name = "memoriser"
    seen: ClassVar[list[set[bytes]]] = []

    def fit(self, support):
        self.seen.append({row.tobytes() for row in support.x})
        return Remembered(support.x, support.y, support.classes)


@dataclass(frozen=True)
class Fixed(Head):
    """Logits by a table of the first coordinate."""

    table: np.ndarray

    def logits(self, x):
        return self.table[np.round(x[:, 0] * 1000).astype(int)]


def scripted(tables):
    """A way with a setting for each table of logits [N, C], and a support whose image i finds row i."""
    tables = np.asarray(tables, dtype=float)

    @dataclass(frozen=True)
    class Scripted(Way):
        name = "scripted"
        number: int = 0
        calls: ClassVar[list[int]] = []

        @classmethod
        def grid(cls, support):
            return [{"number": i} for i in range(len(tables))]

        @classmethod
        def logits_of(cls, settings, support, x):
            cls.calls.append(len(settings))
            return super().logits_of(settings, support, x)

        def fit(self, support):
            return Fixed(tables[self.number])

    support = clusters(tables.shape[2], tables.shape[1] // tables.shape[2], 2)
    return Scripted, replace(support, x=np.stack([np.arange(len(support.y)) / 1000, np.ones(len(support.y))], 1).astype(np.float32))


# --- folds ---


def test_classes_are_spread_evenly_and_all_pictures_are_left_out_once():
    y = np.repeat([0, 1, 2, 3], [23, 5, 2, 10])
    fold = fold_of(y, folds=5)
    counts = np.array([[(fold[y == c] == k).sum() for k in range(5)] for c in range(4)])
    assert (counts.max(1) - counts.min(1) <= 1).all()
    assert counts.sum() == len(y) and set(fold) == set(range(5))
    assert np.ptp(counts.sum(0)) <= 1  # small classes do not all begin with the same fold


def test_the_only_picture_of_a_class_is_never_left_out():
    assert fold_of(np.array([0, 1, 1, 2, 2, 2])).tolist().count(-1) == 1
    assert (fold_of(np.arange(4)) == -1).all()


def test_groups_are_never_divided():
    random = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], 20)
    groups = np.repeat(np.arange(30), 2)
    groups[[3, 25, 47]] = 99  # one across three classes
    groups = random.permutation(1000)[groups]
    fold = fold_of(y, groups)
    assert all(len(set(fold[groups == g])) == 1 for g in set(groups))
    assert fold_of(np.array([0, 0, 1, 1]), [5, 5, 6, 7]).tolist()[:2] == [-1, -1]  # a class that is one group cannot be left out


def test_folds_follow_the_seed():
    y = np.repeat([0, 1], 20)
    assert (fold_of(y, seed=1) == fold_of(y, seed=1)).all() and (fold_of(y, seed=1) != fold_of(y, seed=2)).any()


# --- measures ---


def test_log_loss_and_balanced_accuracy():
    random = np.random.default_rng(0)
    logits, y = random.standard_normal((9, 3)), np.array([0, 0, 0, 0, 0, 1, 1, 2, 2])
    assert log_loss(logits, y) == pytest.approx(cross_entropy(logits, y))
    assert log_loss(np.array([[0.0, 1e4]]), np.array([0])) == pytest.approx(1e4)
    right = [[logits[i].argmax() == y[i] for i in range(9) if y[i] == c] for c in range(3)]
    assert balanced_accuracy(logits, y) == pytest.approx(np.mean([np.mean(r) for r in right]))


@pytest.mark.parametrize("seed", range(5))
def test_the_temperature_is_the_best_of_the_grid(seed):
    random = np.random.default_rng(seed)
    logits, y = random.standard_normal((40, 4)) * 10.0 ** random.integers(-2, 3), random.integers(0, 4, 40)
    losses = [cross_entropy(logits / t, y) for t in TEMPERATURES]
    assert fitting_temperature(logits, y) == pytest.approx(TEMPERATURES[int(np.argmin(losses))])


def test_the_temperature_undoes_a_scale():
    random = np.random.default_rng(0)
    true = 2 * random.standard_normal((4000, 3))
    p = np.exp(true) / np.exp(true).sum(1, keepdims=True)
    y = (random.random((4000, 1)) > p.cumsum(1)).sum(1)
    assert fitting_temperature(3 * true, y) == pytest.approx(3, rel=0.1)
    assert fitting_temperature(true[:0], y[:0]) == 1.0


# --- what is left out ---


def test_a_head_never_saw_the_images_that_it_is_judged_by():
    support = clusters(4, 7, seed=3)
    Memoriser.seen.clear()
    choice = choose_settings(Memoriser, support)
    fold = fold_of(support.y, seed=support.seed)
    rows = [row.tobytes() for row in support.x]
    assert Memoriser.seen == [{r for r, f in zip(rows, fold, strict=True) if f != k} for k in range(5)]
    assert choice.folds == 5 and not np.isnan(choice.logits).any()


def test_what_is_learned_by_heart_is_chance_out_of_fold():
    accuracies = [choose_settings(Memoriser, clusters(4, 10, seed=s, shuffled=True)).accuracy for s in range(30)]
    assert np.mean(accuracies) == pytest.approx(0.25, abs=3 * np.std(accuracies) / 30**0.5)


def test_copies_in_one_group_do_not_help_and_without_groups_they_do():
    """What a near-duplicate on the other side of a fold would bring."""
    once = [clusters(4, 6, seed=s, shuffled=True) for s in range(15)]
    twice = [replace(s, x=np.repeat(s.x, 2, 0), y=np.repeat(s.y, 2)) for s in once]
    together = [choose_settings(Memoriser, s, np.repeat(np.arange(24), 2)).accuracy for s in twice]
    assert np.mean(together) == pytest.approx(0.25, abs=3 * np.std(together) / 15**0.5)
    assert np.mean([choose_settings(Memoriser, s).accuracy for s in twice]) > 0.6


def test_a_lone_picture_has_no_logits_and_does_not_count():
    support = clusters(3, [6, 6, 1])
    Memoriser.seen.clear()
    choice = choose_settings(Memoriser, support)
    assert len(Memoriser.seen) == 5 and all(support.x[12].tobytes() in seen for seen in Memoriser.seen)  # but all learn from it
    assert np.isnan(choice.logits[12]).all() and not np.isnan(choice.logits[:12]).any()
    assert choice.accuracy == pytest.approx(
        np.mean([(choice.logits[r].argmax(1) == c).mean() for c, r in enumerate([slice(6), slice(6, 12)])])
    )


def test_nothing_to_leave_out():
    choice = choose_settings(WAYS["gda"], clusters(4, 1))
    assert math.isnan(choice.accuracy) and np.isnan(choice.logits).all()
    assert choice.settings == {"alpha": 0.1} and choice.temperature == 1.0 and choice.folds == 0


def test_a_way_that_learns_nothing_from_images_is_judged_on_all():
    support = clusters(4, [6, 6, 6, 1])
    choice = choose_settings(WAYS["zeroshot"], support)
    expected = support.scale * support.x @ support.texts.T
    np.testing.assert_allclose(choice.logits, expected, rtol=1e-4, atol=1e-4)
    assert choice.accuracy == pytest.approx(balanced_accuracy(expected, support.y)) and choice.folds == 0


# --- the rule ---

Y = np.repeat([0, 1], 10)
RIGHT, WRONG = np.eye(2)[Y], np.eye(2)[1 - Y]


def mixed(share_right, sure=1.0):
    """Logits that are right for the first pictures of each class, ``share_right`` of ten."""
    use = np.tile(np.arange(10) < 10 * share_right, 2)[:, None]
    return sure * np.where(use, RIGHT, WRONG)


def test_the_highest_accuracy_is_chosen():
    way, support = scripted([mixed(0.6), mixed(0.9), mixed(0.8)])
    choice = choose_settings(way, support)
    assert choice.settings == {"number": 1}
    assert [t["accuracy"] for t in choice.tried] == pytest.approx([0.6, 0.9, 0.8])
    np.testing.assert_allclose(choice.logits, mixed(0.9))
    assert way.calls == [3] * 5  # all settings at once, for each fold
    assert learned(way, support, choice).table.tolist() == mixed(0.9).tolist()


def test_then_the_least_loss_at_the_temperature_that_fits():
    """Surer alone is no better, since a temperature undoes it; surer where it is right is."""
    knows = mixed(0.8) * np.tile(np.where(np.arange(10) < 8, 3.0, 1.0), 2)[:, None]
    way, support = scripted([mixed(0.8), mixed(0.8, sure=2), knows])
    choice = choose_settings(way, support)
    assert choice.settings == {"number": 2}
    losses = [t["loss"] for t in choice.tried]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3) and losses[2] < losses[0] - 0.01
    assert choice.temperature == fitting_temperature(knows, Y)


def test_accuracy_counts_before_the_loss():
    """The better one is very sure where it is wrong."""
    sure = mixed(0.9) * np.tile(np.where(np.arange(10) < 9, 1.0, 40.0), 2)[:, None]
    choice = choose_settings(*scripted([mixed(0.8, sure=2), sure]))
    assert choice.settings == {"number": 1} and choice.tried[1]["loss"] > choice.tried[0]["loss"]


def test_too_sure_is_no_fault_where_a_temperature_mends_it():
    knows = mixed(0.8) * np.tile(np.where(np.arange(10) < 8, 3.0, 1.0), 2)[:, None]
    assert log_loss(20 * knows, Y) > log_loss(mixed(0.8), Y)
    assert choose_settings(*scripted([mixed(0.8), 20 * knows])).settings == {"number": 1}


def test_then_the_first_of_the_grid():
    way, support = scripted([mixed(0.7), mixed(0.7)])
    assert choose_settings(way, support).settings == {"number": 0}


def test_one_setting_is_judged_as_it_is():
    way, support = scripted([mixed(0.7)])
    choice = choose_settings(way, support)
    assert choice.accuracy == pytest.approx(0.7) and choice.tried[0]["accuracy"] == pytest.approx(0.7)


def test_the_best_of_many_settings_is_too_good_and_the_accuracy_of_the_choice_is_not():
    """Forty settings that know nothing: the best of them is far above a half; those that the other folds choose are not."""
    random = np.random.default_rng(0)
    best, honest = [], []
    for _ in range(40):
        choice = choose_settings(*scripted(random.standard_normal((40, 20, 2))))
        best.append(max(t["accuracy"] for t in choice.tried))
        honest.append(choice.accuracy)
    assert np.mean(best) > 0.7
    assert np.mean(honest) == pytest.approx(0.5, abs=3 * np.std(honest) / 40**0.5)


def test_logits_of_many_settings_go_to_a_file(monkeypatch):
    way, support = scripted([mixed(0.6), mixed(0.9)])
    expected = choose_settings(way, support)
    rooms = []
    monkeypatch.setattr("diptych.choose.select.ROOM", 0)
    monkeypatch.setattr(np, "memmap", lambda *a, memmap=np.memmap, **k: rooms.append(memmap(*a, **k)) or rooms[-1])
    choice = choose_settings(way, support)
    assert len(rooms) == 1 and type(choice.logits) is np.ndarray
    assert (choice.settings, choice.tried) == (expected.settings, expected.tried)
    np.testing.assert_array_equal(choice.logits, expected.logits)
