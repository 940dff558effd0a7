"""Hidden states of a language model as vectors of images: against transformers, and as a model to choose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from choose_fixture import class_folders
from diptych.api import load
from diptych.cli import app
from diptych.config.recipe import load_recipe
from diptych.core.errors import DiptychError
from diptych.core.files import read_json
from diptych.inference.run import TrainedModel
from diptych.inference.scored import HiddenStates
from diptych.training.loop import train

SMALL = ["data.train=scenes:small?length=32", "budget=16 samples", "stages.0.batch_size=8", "precision=fp32", "trackers=[]", "device=cpu"]  # fmt: skip


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A captioner of a few steps, its language model made anew."""
    out = tmp_path_factory.mktemp("runs") / "frozen"
    lm = ["parts.lm={kind: random, frozen: true}", "parts.vision={kind: vit, depth: 1, width: 32, heads: 2}", "data.image_size=32"]
    train(load_recipe("frozen", [*SMALL, *lm]), out)
    return out


def pictures(n: int = 3) -> list[np.ndarray]:
    return [np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8) for i in range(n)]


def test_the_vectors_are_the_states_of_the_last_layer(frozen: Path) -> None:
    run = TrainedModel.load(frozen, "cpu")
    lm = run.model.part("lm")
    with torch.no_grad():
        prefix = run._images(pictures())["image.prefix"]
        begin = lm.lm.embed(torch.full((3, 1), lm.lm.tokenizer.bos))
        inputs = torch.cat([begin, prefix * lm.scale], 1)
        theirs = lm.lm.model.get_decoder()(inputs_embeds=inputs).last_hidden_state[:, 1:]  # transformers' own pass
    for pool, want in (("mean", theirs.mean(1)), ("last", theirs[:, -1])):
        model = load(f"hidden:{frozen}?pool={pool}", device="cpu")
        assert isinstance(model, HiddenStates) and model.capabilities == {"embed_image"}
        found = model.embed_image(pictures())
        np.testing.assert_allclose(found, torch.nn.functional.normalize(want, dim=1).numpy(), atol=1e-5)
        np.testing.assert_allclose(model.embed_image(pictures()[1:2])[0], found[1], atol=1e-5)
    assert load(f"hidden:{frozen}", device="cpu").key == f"{run.key}-hidden-mean"


def test_the_state_from_which_the_first_word_is_predicted(frozen: Path) -> None:
    run = TrainedModel.load(frozen, "cpu")
    with torch.no_grad():
        last = run._images(pictures())["image.kv_cache"].last[:, 0]
    found = HiddenStates(run, "last").embed_image(pictures())
    np.testing.assert_allclose(found, torch.nn.functional.normalize(last, dim=1).numpy(), atol=1e-5)


def test_models_without_them_are_refused(frozen: Path) -> None:
    with pytest.raises(DiptychError, match="has no language model that reads images"):
        load("hidden:conse")
    with pytest.raises(DiptychError, match="expected mean or last"):
        load(f"hidden:{frozen}?pool=first")
    with pytest.raises(DiptychError, match="unknown option 'layer'"):
        load(f"hidden:{frozen}?layer=3")


def test_choose_and_adapt_with_hidden_states(frozen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    data, out = f"classes:{class_folders(tmp_path / 'data', each=10)}", tmp_path / "o"
    words = ["choose", f"hidden:{frozen}", "--data", data, "--ways", "zeroshot,probe,gda", "--out", str(out), "--device", "cpu"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    results = read_json(out / "results.json")
    skipped = {c["way"]: c["skipped"] for c in results["cells"] if "skipped" in c}
    assert skipped == {"zeroshot": "the model has no text vectors"}
    assert {r["way"] for r in results["verdict"]["rows"]} == {"majority", "probe", "gda"}
    made = ["adapt", f"hidden:{frozen}", "--way", "probe", "--data", data, "--out", str(tmp_path / "a"), "--device", "cpu"]
    assert CliRunner().invoke(app, made).exit_code == 0
    model = load(tmp_path / "a", device="cpu")
    assert model.classify(pictures()).shape == (3, 4)  # type: ignore[attr-defined]
