"""Ways that adapt a language model which reads images, to classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from diptych.api import load
from diptych.choose.towers import TOWER_WAYS, fit, tower_recipe
from diptych.config.recipe import load_recipe
from diptych.core.errors import DiptychError
from diptych.inference.adapted import AdaptedModel
from diptych.inference.run import TrainedModel
from diptych.training.checkpoint import restored
from diptych.training.loop import train
from towers_fixture import FAST, NAMES, folders, pictures, run
from ways_fixture import softmax

WAYS = ("lm-lora", "llama-adapter", "vl-adapter")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"classes:{folders(tmp_path_factory.mktemp('data') / 'classes', n=6)}"


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A captioner of a few steps: a vision tower, a connector, a small Llama."""
    small = ["data.train=scenes:small?length=32", "budget=16 samples", "stages.0.batch_size=8", "precision=fp32", "trackers=[]"]
    parts = ["parts.lm={kind: llama, width: 32, depth: 2, heads: 2, frozen: true}", "data.tokenizer={kind: bpe, vocab_size: 320}"]
    tower = ["parts.vision={kind: vit, depth: 1, width: 32, heads: 2}", "data.image_size=32", "device=cpu"]
    out = tmp_path_factory.mktemp("runs") / "frozen"
    train(load_recipe("frozen", [*small, *parts, *tower]), out)
    return str(out)


@pytest.mark.parametrize("way", WAYS)
def test_only_the_adapter_learns_and_classes_are_named_by_their_likelihood(
    writer: str, data: str, tmp_path: Path, way: str
) -> None:
    out = fit(writer, TOWER_WAYS[way], data, tmp_path / "run", shots=2, budget="16 samples", overrides=FAST)
    before, after = restored(Path(writer)).model, restored(out).model
    was = {n: p for n, p in before.named_parameters()}
    for name, p in after.named_parameters():
        bare = name.replace("base_layer.", "")
        if not after.adapter_owns(name) and bare in was:
            assert torch.equal(p, was[bare]), name
    assert any(p.abs().sum() > 0 for n, p in after.named_parameters() if after.adapter_owns(n))
    model, ours = load(out, device="cpu"), TrainedModel.load(out, "cpu")
    assert isinstance(model, AdaptedModel) and model.classes == tuple(sorted(NAMES))
    texts = [f"a photo of a {name.replace('_', ' ')}" for name in sorted(NAMES)]
    shown = pictures(3)
    likely = np.array([[ours.loglikelihood([x], [t])[0] for t in texts] for x in shown], dtype=np.float64)
    np.testing.assert_allclose(model.classify(shown), softmax(likely), atol=1e-4)


def test_the_loss_is_that_of_writing_the_class(writer: str, data: str) -> None:
    recipe = tower_recipe(writer, TOWER_WAYS["lm-lora"], f"shots:{data}?shots=2")
    assert recipe.stages[0].train == ["adapters.lm"] and set(recipe.stages[0].objectives) == {"next_token"}
    assert recipe.score == "likelihood" and recipe.adapters["lm"].kind == "lora" and "text" not in recipe.parts
    assert all(part.frozen for part in recipe.parts.values())


def test_models_without_a_language_model_are_refused(data: str, tmp_path: Path, writer: str) -> None:
    clip = run(tmp_path / "clip")
    with pytest.raises(DiptychError, match="needs one with a language model"):
        tower_recipe(str(clip), TOWER_WAYS["lm-lora"], f"shots:{data}?shots=2")
    with pytest.raises(DiptychError, match="need two towers"):
        tower_recipe(writer, TOWER_WAYS["lora"], f"shots:{data}?shots=2")
