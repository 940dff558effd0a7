"""What holds for every way on vectors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from diptych.choose.select import choose_settings
from diptych.choose.ways import TRANSFER, WAYS
from diptych.core.errors import DiptychError
from diptych.inference.heads import load_head
from ways_fixture import clusters

LEARN = [n for n, w in WAYS.items() if w.needs_images and n != "majority" and w not in TRANSFER]  # TRANSFER has tests of its own
NAMED = [n for n in LEARN if WAYS[n].needs_text]
QUICK = ("knn", "prototypes", "gda", "tip")  # no training: in a blink
# Trainings are as published but short; probe's settings are of its grid. What is tested here holds at any length.
SHORT = {
    "probe-init": {"epochs": 30},
    "clap": {"epochs": 30},
    "taskres": {"epochs": 20},
    "tip-f": {},
    "clip-adapter": {"epochs": 5, "lr": 1e-3},
}


def fit(name, support):
    return WAYS[name](**SHORT.get(name, {})).fit(support)


def new(**options):
    return clusters(**{"classes": 4, "shots": 25, "seed": 0, **options}).x


def test_all_ways_are_described():
    for name, way in WAYS.items():
        assert way.name == name and way.about and (way.cite or name == "majority")
        assert way.__doc__ and way.fit.__doc__


@pytest.mark.parametrize("name", LEARN)
def test_it_learns(name):
    """On new pictures of the same clusters, twice as noisy as the training ones are apart from chance."""
    train = clusters(4, 16, seed=0, noise=1.5)
    test = clusters(4, 66, seed=0, noise=1.5)
    fresh = np.flatnonzero(~np.isin(test.x[:, 0], train.x[:, 0]))
    head = fit(name, train)
    assert (head.logits(test.x[fresh]).argmax(1) == test.y[fresh]).mean() > 0.6


@pytest.mark.parametrize("name", LEARN)
@pytest.mark.parametrize("shape", [(4, 1), (2, 5), (1, 3), (1, 1), (3, [6, 1, 1]), (3, [0, 5, 4])], ids=str)
def test_few_pictures(name, shape):
    """One of a class, two classes, one class, a class with none: finite logits of the right shape; the one class is named."""
    support = clusters(*shape)
    logits = fit(name, support).logits(support.x)
    assert logits.shape == (len(support.y), shape[0]) and np.isfinite(logits).all()
    assert (logits.argmax(1) == support.y).mean() > 0.7


@pytest.mark.parametrize("name", LEARN)
@pytest.mark.parametrize("shape", [(4, 1), (1, 3), (3, [0, 5, 4])], ids=str)
def test_settings_are_chosen_of_few_pictures_too(name, shape, monkeypatch):
    way = WAYS[name]
    monkeypatch.setattr(way, "grid", classmethod(lambda cls, s, grid=way.grid: [{**g, **SHORT.get(name, {})} for g in grid(s)[:3]]))
    choice = choose_settings(way, clusters(*shape))
    assert choice.settings and choice.logits.shape[1] == shape[0]


@pytest.mark.parametrize("name", LEARN)
def test_a_class_without_pictures(name):
    """Ways with texts name it for an image that is its text; ways without never do."""
    support = clusters(4, [8, 8, 8, 0], seed=2)
    logits = fit(name, support).logits(np.concatenate([support.texts[3:], support.x, new()]))
    if WAYS[name].needs_text or name == "gda":
        assert logits[0].argmax() == 3
    else:
        assert (logits.argmax(1) != 3).all()


@pytest.mark.parametrize("name", NAMED)
def test_without_texts_it_says_so(name):
    with pytest.raises(DiptychError, match="no text vectors; choose a way that needs images alone"):
        fit(name, clusters(3, 4, texts=False))


@pytest.mark.parametrize("name", LEARN)
def test_the_default_is_the_first_of_the_grid(name):
    support = clusters(4, 8)
    assert WAYS[name](**WAYS[name].grid(support)[0]) == WAYS[name]()


@pytest.mark.parametrize("name", LEARN)
def test_several_settings_at_once_are_each_alone(name):
    """With a class that has no pictures, and pictures in no order of classes."""
    support = clusters(4, [5, 0, 3, 6], noise=1.5)
    support = support.rows(np.random.default_rng(0).permutation(14))
    settings = [{**s, **SHORT.get(name, {})} for s in WAYS[name].grid(support)][:8]
    if name == "tip-f":
        settings.append({"lr": 0.01, "alpha": 3.0})  # other training
    for setting, logits in zip(settings, WAYS[name].logits_of(settings, support, new()), strict=True):
        np.testing.assert_allclose(logits, WAYS[name](**setting).fit(support).logits(new()), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", LEARN)
def test_the_order_of_classes_does_not_matter(name):
    support = clusters(4, 6, noise=1.5)
    order = np.array([2, 0, 3, 1])  # class i becomes order[i]
    prompts = np.empty_like(support.prompts)
    prompts[order] = support.prompts
    turned = fit(name, replace(support, y=order[support.y], prompts=prompts)).logits(new())
    expected = fit(name, support).logits(new())
    np.testing.assert_allclose(turned[:, order], expected, rtol=1e-3, atol=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize("name", LEARN)
def test_the_same_seed_gives_the_same_head(name):
    support = replace(clusters(4, 10), seed=5)
    np.testing.assert_array_equal(fit(name, support).logits(new()), fit(name, support).logits(new()))


@pytest.mark.parametrize("name", ["prototypes", "probe-init", "clap", "taskres"])
def test_twice_the_same_pictures_teach_the_same(name):
    """Means over pictures do not change."""
    support = clusters(3, 4)
    twice = replace(support, x=np.tile(support.x, (2, 1)), y=np.tile(support.y, 2))
    np.testing.assert_allclose(fit(name, twice).logits(new()), fit(name, support).logits(new()), rtol=1e-3, atol=1e-3)


def test_twice_the_same_pictures_are_twice_the_neighbours():
    support = clusters(3, 4)
    twice = replace(support, x=np.tile(support.x, (2, 1)), y=np.tile(support.y, 2))
    got, expected = WAYS["knn"](k=6).fit(twice).shares(new()), WAYS["knn"](k=3).fit(support).shares(new())
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["prototypes", "tip", "probe"])
def test_logits_are_a_multiple_where_the_models_scale_is(name):
    """prototypes: of the scale; the part of the names in tip; probe does not know it."""
    support = clusters(3, 4)
    one, two = (WAYS[name]().fit(replace(support, scale=s)).logits(new()) for s in (10.0, 20.0))
    names = new() @ support.texts.T
    expected = {"prototypes": 2 * one, "tip": one + 10 * names, "probe": one}[name]
    np.testing.assert_allclose(two, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LEARN)
def test_saved_and_loaded(name, tmp_path):
    support = clusters(4, 6)
    head = fit(name, support)
    loaded = load_head(tmp_path, head.save(tmp_path))
    assert type(loaded) is type(head)
    np.testing.assert_array_equal(loaded.logits(new()), head.logits(new()))


@pytest.mark.parametrize("name", LEARN)
def test_further_classes_by_their_names(name):
    """The logits of the known classes stay; a further class has the logits of its name, whatever was learned for the others."""
    support = clusters(4, 6)
    head = fit(name, support)
    names = support.scale * clusters(3, 1, seed=9).texts
    more = head.with_classes(names)
    if name in ("knn", "prototypes", "probe", "cross-modal"):
        assert more is None
        return
    got = more.logits(new())
    np.testing.assert_allclose(got[:, :4], head.logits(new()), rtol=1e-5, atol=1e-5)
    if name != "clip-adapter":  # whose image vectors are others
        np.testing.assert_allclose(got[:, 4:], new() @ names.T, rtol=1e-4, atol=1e-4)
    assert not np.allclose(got[:, 4:], 0)


@pytest.mark.parametrize("name", QUICK)
def test_shuffled_labels_are_chance(name):
    assert_chance(name, range(20))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["majority", "zeroshot", *LEARN])
def test_shuffled_labels_are_chance_with_all_settings(name, monkeypatch):
    """With the whole grid, whose best setting would be above chance; trainings have at most a fifth of the epochs."""
    way = WAYS[name]
    if hasattr(way, "epochs") and name != "tip-f":
        few = {"clip-adapter": 20}.get(name, 60)
        monkeypatch.setattr(way, "grid", classmethod(lambda cls, s, grid=way.grid: [{**g, "epochs": few} for g in grid(s)]))
    assert_chance(name, range(20))


def assert_chance(name, seeds):
    """Over the seeds the mean accuracy out of fold is within 3 standard errors of 1 / 5."""
    accuracies = [choose_settings(WAYS[name], clusters(5, 10, 32, seed=s, shuffled=True)).accuracy for s in seeds]
    error = np.std(accuracies, ddof=1) / len(accuracies) ** 0.5
    assert abs(np.mean(accuracies) - 0.2) <= 3 * error + 1e-9, accuracies


def test_many_images_are_compared_in_blocks(monkeypatch):
    support = clusters(4, 6)
    for name in ("knn", "tip"):
        whole = WAYS[name]().fit(support).logits(new())
        monkeypatch.setattr("diptych.inference.heads.BLOCK", 100)  # four rows of 24 similarities
        np.testing.assert_allclose(WAYS[name]().fit(support).logits(new()), whole, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(WAYS[name].logits_of([{}], support, new())[0], whole, rtol=1e-5, atol=1e-5)
        assert WAYS[name]().fit(support).logits(new()[:0]).shape == (0, 4)
        monkeypatch.undo()
