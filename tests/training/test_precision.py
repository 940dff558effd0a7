"""The precision of steps: Muon in float32 where bfloat16 is slow, and when that is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from diptych.config.recipe import Stage
from diptych.training.muon import Float32Muon, orthogonalised
from diptych.training.optim import build_optimizer
from diptych.training.precision import WITHOUT, multiplies_bf16, use_bf16

CPU = torch.device("cpu")


def reference(matrix: np.ndarray) -> np.ndarray:
    """Five Newton–Schulz steps in float64, for a wide matrix from its singular values: p(s) = a s + b s³ + c s⁵."""
    u, s, v = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    s = s / np.sqrt((s**2).sum())
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s) @ v


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6), (1, 4)])
def test_a_matrix_is_orthogonalised_as_by_its_singular_values(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(0).normal(size=shape)
    found = orthogonalised(torch.tensor(matrix), torch.float64).numpy()
    assert np.allclose(found, reference(matrix), atol=1e-9)
    single = orthogonalised(torch.tensor(matrix, dtype=torch.float32), torch.float32)
    assert single.dtype == torch.float32 and np.allclose(single.numpy(), reference(matrix), atol=1e-4)
    assert torch.isfinite(orthogonalised(torch.zeros(shape), torch.float32)).all()


def test_steps_in_float32_are_those_of_torch_within_the_precision_of_bfloat16() -> None:
    torch.manual_seed(0)
    own = [torch.nn.Parameter(torch.randn(shape)) for shape in ((16, 32), (32, 16), (16, 16))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in own]
    begin = [p.detach().clone() for p in own]
    options = {"lr": 0.02, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    ours, torchs = Float32Muon(own, **options), torch.optim.Muon(theirs, **options)  # type: ignore[arg-type]
    for _ in range(4):
        for p, q in zip(own, theirs, strict=True):
            p.grad = q.grad = torch.randn(p.shape)
        ours.step()
        torchs.step()
    for p, q, before in zip(own, theirs, begin, strict=True):
        moved = (q - before).norm()
        assert moved > 0.1 and (p - q).norm() < 0.02 * moved
        assert torch.equal(ours.state[p]["momentum_buffer"], torchs.state[q]["momentum_buffer"])
    own[0].grad = None  # nothing to learn: it stays as it is
    before = own[0].detach().clone()
    ours.step()
    assert torch.equal(own[0], before)


def test_limits_of_onednn_count_as_a_processor_without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = " avx2 avx512_bf16 amx_bf16 "
    monkeypatch.setattr(Path, "is_file", lambda self: True)
    monkeypatch.setattr(Path, "read_text", lambda self: flags)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert multiplies_bf16(CPU) and use_bf16("auto", CPU) and not use_bf16("fp32", CPU)
    for isa in WITHOUT:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
        assert not multiplies_bf16(CPU) and not use_bf16("auto", CPU) and use_bf16("bf16", CPU)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    assert multiplies_bf16(CPU)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    flags = " avx2 avx512f "
    assert not multiplies_bf16(CPU)


def test_the_optimizer_follows_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    net = torch.nn.ModuleDict({"head": torch.nn.Linear(3, 3), "blocks": torch.nn.ModuleList([torch.nn.Linear(4, 4)])})
    stage = Stage(objectives={"info_nce": 1}, optimizer="muon")  # type: ignore[dict-item]
    for fast, cls in ((True, torch.optim.Muon), (False, Float32Muon)):
        monkeypatch.setattr("diptych.training.optim.multiplies_bf16", lambda device, fast=fast: fast)
        assert type(build_optimizer([net], stage).members[1]) is cls
