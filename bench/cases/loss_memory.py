"""The contrastive losses alone, forward and backward, on unit vectors in fp32: memory of the loss beyond its inputs (and their
gradients), and time. open_clip's `ClipLoss` and `SigLipLoss` hold the N × N matrix; ours processes it in tiles. Each run is a new
process; the libraries alternate."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from bench.harness import Bench, measure_memory, megabytes


def prepare(form: str, n: int, d: int) -> Callable[[], float]:
    """Loss and gradients of ``n`` pairs by ``form``, after a small run that loads what torch loads late."""
    import torch

    from bench.peers import open_clip
    from diptych.objectives.contrastive import info_nce
    from diptych.objectives.losses.tiled import tiled_info_nce, tiled_sigmoid_sum

    def loss(image: Any, text: Any, scale: Any, bias: Any) -> Any:
        if form == "info_nce, tiled":
            return tiled_info_nce(image, text, scale)
        if form == "info_nce, plain":
            return info_nce(image, text, scale)
        if form == "sigmoid, tiled":
            return tiled_sigmoid_sum(image, text, scale, bias, 0) / len(image)
        if form == "open_clip ClipLoss":
            return open_clip().ClipLoss()(image, text, scale)
        assert form == "open_clip SigLipLoss", form
        return open_clip().loss.SigLipLoss()(image, text, scale, bias)

    def run(n: int) -> float:
        image, text, scale, bias = inputs[n]
        value = loss(image, text, scale, bias)
        value.backward()
        return float(value)

    torch.manual_seed(0)
    inputs = {}
    for m in (256, n):
        image, text = (torch.nn.functional.normalize(torch.randn(m, d), dim=-1).requires_grad_() for _ in range(2))
        inputs[m] = image, text, torch.tensor(10.0, requires_grad=True), torch.tensor(-10.0, requires_grad=True)
    run(256)
    return lambda: run(n)


def run(bench: Bench) -> None:
    n, d, rounds = (4096, 128, 1) if bench.quick else (16384, 512, 3)
    rows = []
    for ours, theirs in (("info_nce, tiled", "open_clip ClipLoss"), ("sigmoid, tiled", "open_clip SigLipLoss")):
        runs: dict[str, list] = {ours: [], theirs: []}
        for i in range(rounds):
            for form in (ours, theirs) if i % 2 == 0 else (theirs, ours):
                runs[form].append(measure_memory("bench.cases.loss_memory:prepare", form=form, n=n, d=d))
        extra = {f: statistics.median(m.extra for m in ms) for f, ms in runs.items()}
        ratio = statistics.median(a.seconds / b.seconds for a, b in zip(runs[ours], runs[theirs], strict=True))
        for form, ms in runs.items():
            seconds = statistics.median(m.seconds for m in ms)
            rows.append([form, f"{n:,}", f"{d}", megabytes(extra[form]), f"{seconds:.2f}", f"{ms[0].result:.5f}"])
            print("  ", *rows[-1], flush=True)
        bench.goal(f"{ours}: extra memory at N {n:,}, d {d} ≤ 0.2 GB", megabytes(extra[ours]), extra[ours] <= 0.2e9)
        bench.goal(f"{ours}: time ≤ 1.3× {theirs}", f"{ratio:.2f}×", ratio <= 1.3)
    bench.table(["", "N", "d", "extra memory", "s", "loss"], rows)
