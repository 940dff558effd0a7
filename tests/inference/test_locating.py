"""The capability ``locate`` of runs: boxes that they predict, heat that they compute, maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from diptych.core.capabilities import FunctionModel, Located
from diptych.core.errors import DiptychError
from diptych.inference.locating.run import Locates, _from_box, _from_heat, ways_of
from diptych.inference.run import TrainedModel
from maps_fixture import noise, run_of


def test_a_box_in_shares_of_the_square_is_in_pixels_of_the_picture() -> None:
    picture = np.zeros((40, 100, 3), dtype=np.uint8)
    found = _from_box(np.array([0.75, 0.25, 0.25, 1.5]), None, picture, 2.0)  # the edges crossed, one outside
    assert found == Located((40.0, 10.0, 60.0, 40.0), 2.0, None, None, "box")
    tall = _from_box(np.array([0.0, 0.0, 0.5, 0.5]), np.eye(2), np.zeros((90, 30, 3), dtype=np.uint8), 0.0)
    assert tall.box == (0.0, 30.0, 15.0, 45.0) and tall.heat is not None and tall.heat.shape == (90, 30)
    heat = _from_heat(np.array([[0.0, 1.0], [0.0, 0.0]]), picture, 1.0)
    assert heat.by == "heat" and heat.box is not None and heat.box[0] >= 50 and heat.box[3] <= 20


RUNS = {"x-vlm": ("box",), "kosmos-2": ("box",), "groupvit": ("heat",), "glip": ("box", "heat")}


@pytest.mark.parametrize("name", RUNS)
def test_runs_with_boxes_or_heat_use_these_first(name: str) -> None:
    try:
        run = run_of(name)
    except DiptychError as error:  # pragma: no cover - options of the recipe's own towers
        pytest.fail(str(error))
    assert ways_of(run)[: len(RUNS[name])] == RUNS[name] and "locate" in run.capabilities
    images, texts = noise(3, 40, 72), ["a red fish", "two stars", "a cat"]
    found = run.locate(images, texts)
    assert len(found) == 3 and all(f.by == RUNS[name][0] for f in found)
    for f in found:
        assert f.box is None or (16 <= f.box[0] <= f.box[2] <= 56 and 0 <= f.box[1] <= f.box[3] <= 40)
        assert f.heat is None or f.heat.shape == (40, 72)
    assert (found[0].heat is not None) == ("heat" in ways_of(run))
    swapped = run.locate(images[::-1], texts[::-1])[::-1]
    for a, b in zip(found, swapped, strict=True):
        assert (a.box is None) == (b.box is None) and (a.box is None or np.allclose(a.box, b.box, atol=1e-2))


def test_the_wrong_number_of_texts_and_models_that_cannot() -> None:
    run = run_of("clip")
    with pytest.raises(DiptychError, match="1 text for 2 images"):
        run.locate(noise(2), ["a fish"])
    assert run.locate([], []) == []
    function = FunctionModel("own", locate=lambda images, texts: [Located((0, 0, 1, 1), 1.0)] * len(texts))
    assert function.capabilities == {"locate"} and function.locate(noise(1), ["x"])[0].box == (0, 0, 1, 1)
    with pytest.raises(DiptychError, match="cannot locate"):
        FunctionModel("mute", score=lambda images, texts: np.zeros((1, 1))).locate(noise(1), ["x"])
    assert issubclass(TrainedModel, Locates)


def test_boxes_come_from_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    run: Any = run_of("x-vlm")
    part = next(p for p in run.model.graph.candidates("text.box")[0])
    monkeypatch.setattr(part.owner, part.name, lambda *_: torch.tensor([[0.5, 0.0, 1.0, 0.25]]))
    (found,) = run.locate(noise(1, 48, 48), ["a fish"])
    assert found.box == (24.0, 0.0, 48.0, 12.0)
