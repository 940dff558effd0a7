"""Cola's adapter: a transformer over frozen tokens; the towers stay, and the score is that of the fused pair."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import foreign_fixture
from diptych.choose.towers import TOWER_WAYS, fit, tower_recipe
from diptych.inference.run import TrainedModel
from diptych.training.checkpoint import restored
from diptych.training.start.setup import set_up
from towers_fixture import FAST, pictures

TEXTS = ["a red cat", "a photo of a dog", "two star on the left of a blue dog"]


@pytest.mark.parametrize("form", ["joint", "cross"])
def test_only_the_transformer_over_the_frozen_tokens_learns(tmp_path: Path, form: str) -> None:
    clip = f"hf:{foreign_fixture.clip(tmp_path / 'clip')}"
    out = fit(clip, TOWER_WAYS["cola"], "scenes:small?length=48", tmp_path / "run", budget="24 samples",
              settings={"form": form, "batch_size": 12}, overrides=FAST)  # fmt: skip
    ours = TrainedModel.load(out, "cpu")
    assert "score" in ours.capabilities and ours.recipe.score == "matching"
    begun = set_up(tower_recipe(clip, TOWER_WAYS["cola"], "scenes:small?length=48", {"form": form}, overrides=FAST))
    before, after = begun.model.state_dict(), restored(out).model.state_dict()
    towers = [n for n in after if n.startswith(("parts.vision", "parts.text", "parts.space"))]
    assert len(towers) > 20 and all(torch.equal(after[n], before[n]) for n in towers)
    assert not all(torch.equal(after[n], before[n]) for n in after if n.startswith("parts.fusion"))
    found = ours.score(pictures(2), TEXTS)
    model, objective = ours.model, ours.objectives["matching"]
    with torch.no_grad():
        shown, read = ours._images(pictures(2)), ours._texts(TEXTS)
        for i in range(2):
            for j in range(3):
                image, text = shown["image.tokens"], read["text.tokens"]
                one = type(image)(image.tokens[i : i + 1], image.pooled[i : i + 1], None)
                two = type(text)(text.tokens[j : j + 1], text.pooled[j : j + 1], text.mask[j : j + 1])
                fusion = model.part("fusion")
                fused = fusion.both(two, one)[0] if form == "joint" else fusion.text(two, one)
                no, yes = objective.head(fused.pooled)[0].tolist()
                assert found[i, j] == pytest.approx(yes - no, abs=1e-4)
