"""Verdicts on maps: what is measured, against plain loops; who wins; what is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diptych.benchmarks.maps import saved
from diptych.benchmarks.maps.items import items_from, mask_of, open_items
from diptych.benchmarks.maps.measures import SHARES, areas, blob, changed, order_of, pointing
from diptych.benchmarks.maps.saved import FILE, file_of, kept, verdict_on
from diptych.benchmarks.maps.verdict import CONTROLS, MEASURES, Verdict, measure
from diptych.core.errors import DiptychError
from diptych.core.sample import Region, Sample
from maps_fixture import ColourModel, Colours, colour_items

RNG = np.random.default_rng(0)


def test_pointing_counts_the_highest_pixel_and_shares_ties() -> None:
    heat, mask = np.zeros((4, 4)), np.zeros((4, 4), dtype=bool)
    mask[1, 1:3] = True
    heat[1, 2] = 1
    assert pointing(heat, mask) == 1
    heat[3, 3] = 2
    assert pointing(heat, mask) == 0
    heat[1, 2] = heat[1, 1] = 2
    assert pointing(heat, mask) == pytest.approx(2 / 3)
    assert pointing(np.zeros((4, 4)), mask) == pytest.approx(2 / 16)


def test_insertion_and_deletion_pixel_by_pixel() -> None:
    image = RNG.integers(0, 256, (6, 5, 3), dtype=np.uint8)
    heat = RNG.permutation(30).reshape(6, 5).astype(float)
    colour = [round(float(np.mean([image[y, x, c] for y in range(6) for x in range(5)]))) for c in range(3)]
    totals = {"insert": 0.0, "delete": 0.0}

    def score(images: Any, texts: Any) -> np.ndarray:
        return np.array([float(i[..., 0].astype(float).mean() * len(t)) for i, t in zip(images, texts, strict=True)])

    for share in SHARES:
        highest = sorted((-heat[y, x], y, x) for y in range(6) for x in range(5))[: round(share * 30)]
        places = {(y, x) for _, y, x in highest}
        for what in totals:
            made = np.zeros_like(image)
            for y in range(6):
                for x in range(5):
                    made[y, x] = image[y, x] if ((y, x) in places) == (what == "insert") else colour
            np.testing.assert_array_equal(made, changed(image, order_of(heat), share, what == "insert"))
            totals[what] += float(score([made], ["four"])[0]) / len(SHARES)
    inserted, deleted = areas(score, [image, image], ["four", "to"], [heat, heat])
    assert inserted[0] == pytest.approx(totals["insert"]) and deleted[0] == pytest.approx(totals["delete"])
    assert inserted[1] == pytest.approx(totals["insert"] / 2)


def test_equal_pixels_are_in_random_order_and_all_are_ranked() -> None:
    ranks = order_of(np.zeros((8, 8)), 3)
    assert sorted(ranks.ravel()) == list(range(64)) and not np.array_equal(ranks.ravel(), np.arange(64))
    assert order_of(np.array([[0.0, 2.0, 1.0]])).tolist() == [[2, 0, 1]]
    y, x = np.unravel_index(blob(9, 5).argmax(), (9, 5))
    assert (y, x) == (4, 2)


def test_a_map_that_shows_what_the_score_goes_by_is_faithful() -> None:
    verdict = measure(Colours(), "colour", items=colour_items())
    assert verdict.faithful and verdict.values["map"]["pointing"] == 1 and not verdict.lost()
    assert {(t.measure, t.control) for t in verdict.tests} == {(m, c) for m in MEASURES for c in CONTROLS}
    assert verdict.words().startswith("faithful: it points at the object in 100% of 24 cases")
    assert verdict.values["random"]["pointing"] < 0.3 and verdict.chance == pytest.approx(1 / 16)
    assert Verdict.from_dict(json.loads(json.dumps(verdict.as_dict()))) == verdict


def test_maps_that_do_not_depend_on_the_text_or_on_the_picture_are_not_faithful() -> None:
    items = colour_items()
    colour = measure(Colours(), "any", items=items)
    assert not colour.faithful and set(colour.lost()["caption"]) == set(MEASURES)
    assert (
        "not faithful" in colour.words()
        and "does not beat a wrong caption in pointing and insertion and deletion" in colour.words()
    )
    middle = measure(Colours(), "blob", items=items)
    assert set(middle.lost()["blob"]) == set(MEASURES) and set(middle.lost()["weights"]) == set(MEASURES)

    class Unknown(Colours):
        @property
        def modules(self) -> Any:
            return ()

    blind = measure(Unknown(), "colour", items=items)
    assert blind.missing == ("weights",) and not blind.faithful and "could not be tested against scrambled weights" in blind.words()


def test_items_have_masks_or_boxes_and_a_phrase_of_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.zeros((10, 12, 3), dtype=np.uint8)
    mask = np.zeros((10, 12), dtype=bool)
    mask[2, 3] = True
    one, two = Region((1, 2, 5, 6), "a fish"), Region((6, 0, 12, 4), "a star", mask)
    first, second = items_from(Sample("s", image=image, regions=[one, two]))
    assert (first.text, first.other, second.text, second.other) == ("a fish", "a star", "a star", "a fish")
    assert first.mask.sum() == 16 and first.mask[2:6, 1:5].all() and np.array_equal(second.mask, mask)
    assert items_from(Sample("s", image=image, regions=[one])) == [] and items_from(Sample("s", image=image)) == []
    assert mask_of(Region((-3, 8, 99, 99), "edge"), image).sum() == 2 * 12
    found = open_items(6)
    assert 6 <= len(found) <= 8 and all(0 < item.mask.mean() < 0.5 for item in found)
    monkeypatch.setattr("diptych.benchmarks.maps.items.open_source", lambda _: [Sample("s", image=image, regions=[one])] * 10**6)
    with pytest.raises(DiptychError, match="at least two regions"):
        open_items(4)


def test_a_verdict_is_measured_once_for_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved, "measure", lambda maps, method, n, **_: measure(maps, method, items=colour_items(n)))
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "run"
    run.mkdir()
    model = ColourModel("weights 1")
    first = verdict_on(run, model, model.maps, "colour", 6, scenes="given items")
    asked = model.maps.asked
    assert asked and (run / FILE).is_file() and first.key == "weights 1"
    assert verdict_on(run, model, model.maps, "colour", 6, scenes="given items") == first and model.maps.asked == asked
    assert verdict_on(run / "checkpoints" / "best", model, model.maps, "colour", 4, scenes="given items") == first
    more = verdict_on(run, model, model.maps, "colour", 14, scenes="given items")  # 14 scenes have 28 phrases
    assert more.items == 28 and model.maps.asked > asked
    verdict_on(run, model, model.maps, "blob", 6, scenes="given items")
    assert [v.method for v in kept(run / FILE, "weights 1", scenes="given items")] == ["colour", "blob"]
    assert kept(run / FILE, "weights 2", scenes="given items") == []
    (run / FILE).write_text("{ broken")
    assert kept(run / FILE, "weights 1", scenes="given items") == []
    asked = model.maps.asked
    assert verdict_on(run, model, model.maps, "colour", 6, scenes="given items").method == "colour" and model.maps.asked > asked
    other = file_of("conse", "abc")
    assert other is not None and other.parent == tmp_path / "cache" / "maps" and file_of("conse", None) is None
