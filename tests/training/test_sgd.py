"""``optimizer: sgd``: steps as written out, and a run that resumes with its momentum."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diptych.config.recipe import Stage, load_recipe
from diptych.training.loop import train
from diptych.training.optim import build_optimizer


def test_steps_are_those_of_the_formula() -> None:
    """v ← β v + g + λ w, w ← w − η v; no decay of what is not a matrix."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    stage = Stage(objectives={}, optimizer="sgd", lr=0.1, betas=(0.8, 0.5), weight_decay=0.01)
    optimizer = build_optimizer([layer], stage)
    want = {n: p.detach().double().numpy().copy() for n, p in layer.named_parameters()}
    speed = {n: np.zeros_like(w) for n, w in want.items()}
    for step in range(4):
        for name, p in layer.named_parameters():
            g = np.random.default_rng([step, len(name)]).normal(size=tuple(p.shape))
            p.grad = torch.from_numpy(g).float()
            speed[name] = 0.8 * speed[name] + g + (0.01 * want[name] if p.ndim == 2 else 0)
            want[name] = want[name] - 0.1 * speed[name]
        optimizer.step()
    for name, p in layer.named_parameters():
        np.testing.assert_allclose(p.detach().numpy(), want[name], atol=1e-5)


def test_a_run_resumes_with_its_momentum(tmp_path: Path) -> None:
    small = [f"parts.{p}.{k}" for p in ("vision", "text") for k in ("depth=1", "width=32", "heads=2")]
    fast = [
        "data.train=scenes:small?length=32",
        "data.tokenizer.vocab_size=320",
        "stages.0.batch_size=8",
        "precision=fp32",
        "trackers=[]",
    ]
    fixed = [*small, *fast, "stages.0.optimizer=sgd", "stages.0.schedule=constant", "stages.0.warmup=0", "stages.0.lr=0.01"]
    train(load_recipe("clip", [*fixed, "budget=32 samples"]), tmp_path / "whole")
    train(load_recipe("clip", [*fixed, "budget=16 samples"]), tmp_path / "parts")
    train(load_recipe("clip", [*fixed, "budget=32 samples"]), tmp_path / "parts", resume=True)
    for name in ("model", "optimizer"):
        a, b = (
            load_file(sorted((tmp_path / run / "checkpoints").glob("step-*"))[-1] / f"{name}.safetensors")
            for run in ("whole", "parts")
        )
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), name
    assert any(k.endswith("momentum_buffer") for k in a)


def test_a_wrong_optimizer_is_refused(tmp_path: Path) -> None:
    from diptych.core.errors import DiptychError

    with pytest.raises(DiptychError, match="there is no optimizer 'sdg'; did you mean 'sgd'"):
        train(load_recipe("clip", ["stages.0.optimizer=sdg"]), tmp_path / "run")
