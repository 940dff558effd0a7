"""The example ``coop``: a run from its recipe changes the context vectors and nothing else. (The loss: tests/objectives/test_adapting.py.)"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diptych.config.recipe import load_recipe
from diptych.core.errors import DiptychError
from diptych.inference.load import load
from diptych.training.loop import train
from diptych.training.start.setup import set_up, training_loader

HERE = Path(__file__).parents[2] / "examples" / "coop"
SIZES = [f"parts.{p}.{k}" for p in ("vision", "text") for k in ("depth=1", "width=32", "heads=2")]
FAST = [*SIZES, "embed_dim=24", "precision=fp32", "trackers=[]", "device=cpu", "stages.0.warmup=1"]
DATA = "data.train=shots:scenes:small?shots=2"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "clip"
    small = ["data.train=scenes:small?length=64", "data.tokenizer.vocab_size=320", "stages.0.batch_size=16", "budget=64 samples"]
    temperature = "stages.0.objectives.info_nce.temperature=0.05"
    train(load_recipe("clip", [*FAST, *small, temperature]), path)
    return path


def recipe(base: Path, *overrides: str) -> Any:
    return load_recipe(str(HERE / "recipe.yaml"), [*FAST, f"weights={base}", DATA, "stages.0.batch_size=8", *overrides])


def last(run: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(sorted((run / "checkpoints").glob("step-*"))[-1] / f"{name}.safetensors")


def plain_loss(image: np.ndarray, classes: np.ndarray, index: np.ndarray, scale: float) -> float:
    logits = scale * image @ classes.T
    logits = logits - logits.max(1, keepdims=True)
    return float(np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(index)), index]))


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def test_a_batch_is_judged_by_all_class_names_behind_the_context(base: Path) -> None:
    """The loss of a batch from what the run itself gives: its image embeddings, its temperature, and each name encoded alone behind
    the vectors."""
    setup = set_up(recipe(base))
    model, source = setup.model, setup.source
    model.train_only(["adapters.text"])
    batch = training_loader(setup, setup.recipe.stages[0], source).batch(0)
    assert set(batch.fields) == {"image", "label"} and len(source) == 24
    loss = setup.objectives["info_nce"](model.encode(batch))
    text, space, context = model.parts["text"], model.parts["space"], model.adapters["text"].vectors
    rows = []
    with torch.no_grad():
        for name in source.classes:  # type: ignore[attr-defined]
            ids = torch.from_numpy(setup.tokenizer.encode_batch([name])[0][0])
            words = text.embedding(ids[ids != 0])
            x = torch.cat([words[:1], context, words[1:]])
            x = text.transformer((x + text.positions[: len(x)])[None])[0, -1]  # type: ignore[index]
            rows.append(unit(space.text(x)).double().numpy())  # type: ignore[operator]
        image = model.encode(batch)["image.embedding"].double().numpy()
    theirs: Any = load(base, "cpu")
    scale = float(theirs.objectives["info_nce"].scale)  # fixed, and the run's
    assert float(setup.objectives["info_nce"].scale) == pytest.approx(scale) and scale != pytest.approx(1 / 0.07, rel=0.1)
    assert loss.item() == pytest.approx(plain_loss(image, np.stack(rows), batch["label"].index.numpy(), scale), rel=1e-4)
    loss.backward()
    learned = {n for n, p in torch.nn.ModuleList([model, setup.objectives]).named_parameters() if p.grad is not None}
    assert learned == {"0.adapters.text.vectors"}


def test_the_gradient_reaches_the_vectors_and_is_the_true_one(base: Path) -> None:
    setup = set_up(recipe(base, "adapters.text.tokens=3"))
    model = setup.model
    model.train_only(["adapters.text"])
    batch = training_loader(setup, setup.recipe.stages[0], setup.source).batch(0)
    vectors = model.adapters["text"].vectors

    def loss() -> torch.Tensor:
        return setup.objectives["info_nce"](model.encode(batch))

    loss().backward()
    grad = vectors.grad.clone()  # type: ignore[union-attr, operator]
    with torch.no_grad():  # along the gradient itself, which float32 resolves
        direction = grad / grad.norm()
        vectors += 1e-2 * direction
        up = float(loss())
        vectors -= 2e-2 * direction
        down = float(loss())
    assert (up - down) / 2e-2 == pytest.approx(float(grad.norm()), rel=2e-2)


def test_a_run_changes_the_vectors_alone_is_resumed_exactly_and_scores(base: Path, tmp_path: Path) -> None:
    fixed = "stages.0.schedule=constant"
    train(recipe(base, fixed, "budget=32 samples"), tmp_path / "whole")
    train(recipe(base, fixed, "budget=16 samples"), tmp_path / "parts")
    train(recipe(base, fixed, "budget=32 samples"), tmp_path / "parts", resume=True)
    for name in ("model", "objectives", "optimizer"):
        a, b = last(tmp_path / "whole", name), last(tmp_path / "parts", name)
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), name
    was, now = last(base, "model"), last(tmp_path / "whole", "model")
    averaged = {k[2:]: v for k, v in last(base, "ema").items() if k.startswith("0.")}
    assert set(now) - set(was) == {"adapters.text.vectors"} and now["adapters.text.vectors"].shape == (16, 32)
    assert all(torch.equal(now[k], averaged.get(k, was[k])) for k in was)  # to the bit
    assert {k.rpartition(".")[0] for k in last(tmp_path / "whole", "optimizer")} == {"0.adapters.text.vectors"}
    model: Any = load(tmp_path / "whole", "cpu")
    image, names = np.zeros((48, 48, 3), dtype=np.uint8), ["fox", "blue key"]
    scores = model.score([image], names)
    assert scores.shape == (1, 2)
    np.testing.assert_allclose(scores, model.embed_image([image]) @ model.embed_text(names).T, atol=1e-6)
    with torch.no_grad():
        model.model.adapters["text"].vectors.zero_()
    assert np.abs(model.score([image], names) - scores).max() > 1e-6, "it is scored with the context"


def test_without_a_run_the_recipe_says_what_it_needs() -> None:
    with pytest.raises(DiptychError, match="no run at 'runs/nowhere'"):
        set_up(load_recipe(str(HERE / "recipe.yaml"), [*FAST, "weights=runs/nowhere"]))
