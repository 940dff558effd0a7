"""``compile: true``: compiled parts give the losses and gradients of plain ones, in every built-in recipe."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from diptych.config.recipe import load_recipe, recipe_names
from diptych.training.loop import Trainer
from engine_fixture import Little, tiny

TOWER = "parts.vision={kind: vit, depth: 1, width: 32, heads: 2, frozen: true}"
WRITES = [TOWER, "parts.lm={kind: random, frozen: true}"]
DRAWS = [f"parts.quantizer.{o}" for o in ("patch=16", "width=32", "vocabulary=40")]
RECIPES: dict[str, list[str]] = {  # parts that need no packages, and small ones
    **{name: [] for name in recipe_names()},
    **dict.fromkeys(("frozen", "llava", "llava-joint", "prior"), WRITES),
    "bayes-ar": [*DRAWS, "parts.decoder.width=32", "parts.decoder.depth=1"],
    "blip2": [*WRITES, "parts.text={kind: q_former, queries: 3, width: 32, heads: 2, depth: 2}"],
    "chameleon": [*DRAWS, "parts.decoder.width=32", "parts.decoder.depth=1"],
    "flamingo": [*WRITES, "parts.fusion.every=1", "parts.fusion.hidden=32"],
    "flava": ["parts.quantizer.width=32", "parts.quantizer.vocabulary=40"],
    "lit": [TOWER],
    "smaug": ["parts.vision.layers=[0]"],
    "llava-instruct": [TOWER, "parts.lm={kind: random}"],
}


QUICK = ("frozen", "siglip")
STAGES = [  # conversations are no field of the scenes that the tests read; of a language model alone nothing is compiled
    (name, stage.name)
    for name in recipe_names()
    for stage in load_recipe(name).stages
    if load_recipe(name).score != "none"  # a language model of transformers alone: nothing is compiled
    if stage.name not in ("instruct", "unmasked", "reference")
]


def compared(name: str, stage: str, backend: str) -> None:
    """A step of the plain model and of the compiled one, from the same weights on the same batch."""
    torch._dynamo.reset()
    plain, compiled = (Little(name, *RECIPES[name], batch_size=8, stage=stage) for _ in range(2))
    compiled.compile(backend)
    compiled.step(None)  # the operations of the first are counted, so it is not compiled
    counters["stats"].clear()
    (losses, gradients), (ours, theirs) = (
        (one.step(None).losses, {n: p.grad for n, p in one.parameters().items()}) for one in (plain, compiled)
    )
    assert counters["stats"]["unique_graphs"] > 0, "something is compiled"
    for n, loss in losses.items():
        torch.testing.assert_close(ours[n], loss, atol=1e-5, rtol=1e-5, msg=n)
    assert any(g is not None for g in gradients.values())
    for n, gradient in gradients.items():
        assert (gradient is None) == (theirs[n] is None), n
        if gradient is not None:
            assert (theirs[n] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, n


@pytest.mark.parametrize(
    ("name", "stage"), [pytest.param(*case, marks=() if case[0] in QUICK else pytest.mark.slow) for case in STAGES]
)
def test_traced_parts_compute_what_plain_ones_do(name: str, stage: str) -> None:
    """Graphs as ``torch.compile`` takes them, forward and backward, run by torch's own kernels, which needs no compiler."""
    compared(name, stage, "aot_eager")


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, (os.environ.get("CXX", ""), "c++", "g++", "clang++"))), reason="there is no C++ compiler"
)
def test_compiled_parts_compute_what_plain_ones_do() -> None:
    compared("coca", "main", "inductor")


def test_a_run_compiles_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: asked.append(self))
    model = Trainer(load_recipe("maskvlm", [*tiny("maskvlm"), "compile=true"]), tmp_path / "run").setup.model
    assert set(asked) >= set(model.parts.values())
    assert model.part("fusion").text_side in asked, "a transformer in a part that computes in other methods than forward"
