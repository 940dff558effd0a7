"""Runs with prompts in several blocks, adapters of both towers and bottlenecks: what learns, checkpoints, resuming, other starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_adapters import CLIP, FROZEN, TEXTS, adapted, base, encodings, last, made, pictures, stir  # noqa: F401 - a fixture

from batch_fixture import pass_of
from diptych.core.errors import DiptychError
from diptych.core.files import read_json
from diptych.inference.export import export
from diptych.inference.load import load

KINDS = {
    "deep": ["adapters.vision={kind: prompt, tokens: 3, depth: all}", "adapters.text={kind: prompt, tokens: 4, position: middle, depth: 2}"],
    "maple": ["adapters.text={kind: maple}"],
    "mmrl": ["adapters.text={kind: mmrl, dim: 8}"],
    "mmrl++": ["adapters.text={kind: mmrl++, dim: 8}"],
    "bottleneck": [f"adapters.{p}={{kind: bottleneck, rank: 3}}" for p in ("vision", "text")],
}  # fmt: skip


def train_of(kind: str) -> list[str]:
    names = [o.partition("=")[0] for o in KINDS[kind]]
    return [*KINDS[kind], f"stages.0.train=[{', '.join(names)}]"]


@pytest.mark.parametrize("kind", KINDS)
def test_only_adapters_change_and_a_resumed_run_goes_on(base: Path, tmp_path: Path, kind: str) -> None:  # noqa: F811
    options = [*train_of(kind), "stages.0.lr=0.01", "stages.0.schedule=constant"]
    whole = adapted(base, tmp_path / "whole", *options)
    adapted(base, tmp_path / "parts", *options, budget=16)
    parts = adapted(base, tmp_path / "parts", *options, budget=32, resume=True)
    for name in ("model", "ema", "optimizer"):
        a, b = last(whole, name), last(parts, name)
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), name
    model: Any = load(whole, "cpu").model  # type: ignore[attr-defined]
    was, now = last(base, "model"), last(whole, "model")
    averaged = {k[2:]: v for k, v in last(base, "ema").items() if k.startswith("0.")}
    mine = {k for k in now if model.adapter_owns(k)}
    assert mine == {k for k in now if k.startswith("adapters.")} and set(now) - mine >= set(was)
    assert all(torch.equal(now[name], averaged.get(name, was[name])) for name in set(now) - mine), "to the bit"
    fresh = made(*KINDS[kind]).model.state_dict()
    still = {k for k in mine if torch.equal(now[k], fresh[k])}
    reads_only_the_class = {
        "adapters.text.projection",
        "adapters.text.A",
        "adapters.text.B",
    }  # no loss here reads the representation
    assert still <= reads_only_the_class and mine - still
    spent = read_json(whole / "spent.json")
    assert spent["trainable_parameters"] == sum(now[k].numel() for k in mine) + 1  # and the temperature


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_saved_without_a_difference(kind: str) -> None:
    """Blocks that are computed again in the backward pass read the same vectors."""
    model = made(*FROZEN, *KINDS[kind]).model
    stir(model)
    model.train_only([o.partition("=")[0] for o in KINDS[kind]])
    model.train()
    grads = []
    for again in (False, True):
        model.set_training(0.25 if kind == "deep" else 0.0, again)
        model.zero_grad()
        torch.manual_seed(3)
        p = pass_of(model, pictures(3), TEXTS)
        (p["image.embedding"] * p["text.embedding"]).sin().sum().backward()
        grads.append({n: q.grad.clone() for n, q in model.named_parameters() if q.grad is not None})
    assert grads[0] and grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name])


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_of_transformers_gets_them(base: Path, tmp_path: Path, kind: str) -> None:  # noqa: F811
    """``weights: hf:``: places that learned vectors take do not count as missing, and a bottleneck changes nothing yet."""
    there = export(base, out=tmp_path / "export").path
    started = made(*KINDS[kind], f"weights=hf:{there}")
    assert started.started and {"parts.vision", "parts.text", "parts.space"} <= set(started.started.loaded)
    was: Any = load(base, "cpu").model  # type: ignore[attr-defined]
    now: Any = started.model
    torch.testing.assert_close(now.parts["text"].positions, was.parts["text"].positions)
    same = [torch.allclose(x.pooled, y.pooled, atol=1e-5) for x, y in zip(encodings(now), encodings(was), strict=True)]
    assert all(same) == (kind == "bottleneck")


@pytest.mark.parametrize("kind", ["maple", "bottleneck"])
def test_they_have_no_weights_to_export(base: Path, tmp_path: Path, kind: str) -> None:  # noqa: F811
    run = adapted(base, tmp_path / "run", *train_of(kind), budget=8)
    with pytest.raises(DiptychError, match=r"adapters\.\w+: (prompts|bottleneck adapters) .*cannot be merged"):
        export(run, out=tmp_path / "export")


def test_the_image_tower_of_a_recipe_with_maple_is_not_remembered(base: Path, tmp_path: Path) -> None:  # noqa: F811
    """It is frozen, but its output changes with the adapter of the text."""
    setup = made(*FROZEN, *KINDS["maple"])
    setup.model.remember_features(4)
    assert setup.model.features is None
    plain = made(*FROZEN)
    plain.model.remember_features(4)
    assert plain.model.features is not None


def test_a_compiled_tower_reads_the_same() -> None:
    model = made(*KINDS["deep"]).model
    stir(model)
    before = encodings(model)
    model.compile_parts("eager")
    for a, b in zip(before, encodings(model), strict=True):
        np.testing.assert_allclose(a.pooled, b.pooled, atol=1e-6)
