"""minigpt-4: two rounds of one linear layer behind a Q-Former that is another run's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from diptych.config.recipe import load_recipe
from diptych.core.files import read_json
from diptych.training.checkpoint import restored
from diptych.training.loop import train
from diptych.training.start.backbones import planned
from frozen_fixture import CAPTIONS, built, captioned, learned, requested
from plain_fixture import f64, linear

SMALL = ["parts.text={kind: q_former, queries: 3, width: 16, heads: 2, depth: 2, frozen: true}"]
LAYER = {"parts.connector.layer.weight", "parts.connector.layer.bias"}


def test_both_rounds_train_the_linear_layer_alone() -> None:
    recipe, model, objectives = built("minigpt-4", *SMALL)
    losses, changed = learned(recipe, model, objectives, captioned(model))
    assert changed == LAYER and losses[-1] < losses[0]
    asked = requested(model, ["describe the picture."] * len(CAPTIONS), CAPTIONS)
    losses, changed = learned(recipe, model, objectives, asked, stage=1)
    assert changed == LAYER and losses[-1] < losses[0]


def test_the_language_model_reads_what_the_queries_became() -> None:
    _, model, _ = built("minigpt-4", *SMALL)
    p = model.eval().encode(captioned(model))
    queries = f64(p["image.queries"].tokens)
    np.testing.assert_allclose(f64(p["image.prefix"]), linear(model.part("connector").layer, queries), atol=1e-6)


def test_in_miniature_all_three_parts_are_of_one_run() -> None:
    found = planned(load_recipe("minigpt-4@mini"), Path("b"))
    assert set(found) == {"vision", "text", "lm"} and len({each.path for each in found.values()}) == 1
    assert planned(load_recipe("minigpt-4"), Path("b"))["text"].recipe.name == "blip2"  # type: ignore[union-attr]


FAST = {"precision": "fp32", "trackers": [], "device": "cpu"}
SIZES = {
    "parts.vision": {"kind": "vit", "width": 16, "depth": 1, "heads": 2, "frozen": True},
    "parts.lm": {"kind": "llama", "width": 16, "depth": 1, "heads": 2, "hidden": 24, "frozen": True},
    "parts.text": {"kind": "q_former", "queries": 3, "width": 16, "heads": 2, "depth": 1},
}
BLIP2 = {
    "set": {
        **SIZES, "trackers": [], "stages.*.batch_size": 4,
        "backbones.vision": {
            "recipe": "clip", "budget": "8 samples",
            "set": {"parts.vision": {k: v for k, v in SIZES["parts.vision"].items() if k != "frozen"}, "stages.0.batch_size": 8, "trackers": []},
        },
        "backbones.lm": {
            "recipe": "lm", "budget": "16 samples", "data": "facts:{train}?repeat=2",
            "set": {"parts.lm": {k: v for k, v in SIZES["parts.lm"].items() if k != "frozen"}, "stages.0.batch_size": 8, "trackers": []},
        },
    },
    "recipe": "blip2@mini", "budget": "16 samples",
}  # fmt: skip


@pytest.mark.slow
def test_the_q_former_of_a_blip2_run_stays_as_it_is(tmp_path: Path) -> None:
    given = {**FAST, **SIZES, "parts.text.frozen": True, "budget": "16 samples", "stages.*.batch_size": 4}
    recipe = load_recipe("minigpt-4@mini", {**given, **{f"backbones.{part}": BLIP2 for part in ("vision", "lm", "text")}})
    train(recipe, tmp_path / "run")
    found = planned(recipe, tmp_path / "backbones")
    theirs = restored(found["text"].path).model
    ours = restored(tmp_path / "run").model
    for part in ("vision", "lm", "text"):
        state = theirs.part(part).state_dict()
        assert all(torch.equal(v, state[k]) for k, v in ours.part(part).state_dict().items()), part
    spent = read_json(tmp_path / "run" / "spent.json")
    assert set(spent["pretraining"]) == {"vision", "lm", "text"}
