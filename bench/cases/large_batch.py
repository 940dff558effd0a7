"""Peak memory of one exact large-batch gradient of the recipe `clip` (width 256, depth 4; scenes at 48 px; bf16), encoded 64
samples at a time, for increasing batch sizes, of the whole process. For comparison the same batch in one piece. Each run is a new
process; the step includes loading."""

from __future__ import annotations

from collections.abc import Callable

from bench.harness import Bench, measure_memory, megabytes


def prepare(batch_size: int, micro: int | None) -> Callable[[], float]:
    import torch

    from diptych.config.recipe import load_recipe
    from diptych.data.loader import loader_for
    from diptych.training.distributed import Cluster
    from diptych.training.flops import FlopMeter
    from diptych.training.gradient import BatchGradient, Pieces, Share
    from diptych.training.start.setup import set_up

    tower = {"width": 256, "depth": 4, "heads": 4}
    recipe = load_recipe("clip", {"parts.vision": {"kind": "vit", **tower}, "parts.text": {"kind": "transformer", **tower}})
    s = set_up(recipe)
    s.model.train()
    gradient = BatchGradient(s.model, Cluster(), True, 0, FlopMeter())

    def step(size: int, micro: int | None) -> float:
        loader = loader_for(s.source, s.tokenizer, s.model.image_size, size, 0)
        taken = gradient(0, Pieces(Share(loader, 0, Cluster(), micro), 0), s.objectives, {"info_nce": 1.0})
        return float(taken.losses["info_nce"])

    step(64, None)  # what torch loads late
    torch.manual_seed(0)
    return lambda: step(batch_size, micro)


def run(bench: Bench) -> None:
    sizes = [128, 256] if bench.quick else [256, 1024, 4096]
    rows, peaks = [], {}
    for size, micro in [(sizes[0], None), *([] if bench.quick else [(1024, None)]), *((s, 64) for s in sizes)]:
        m = measure_memory("bench.cases.large_batch:prepare", batch_size=size, micro=micro)
        peaks[size, micro] = m.peak
        how = f"micro-batches of {micro}" if micro else "in one piece"
        rows.append([how, f"{size:,}", megabytes(m.peak), megabytes(m.extra), f"{m.seconds:.1f}", f"{size / m.seconds:.0f}"])
        print("  ", *rows[-1], flush=True)
    bench.table(["", "batch", "peak memory", "during the step", "s", "samples/s"], rows)
    growth = peaks[sizes[-1], 64] / peaks[sizes[0], 64] - 1
    bench.goal(f"peak memory from batch {sizes[0]:,} to {sizes[-1]:,} grows ≤ 15 %", f"{growth:+.1%}", growth <= 0.15)
    bench.note("With micro-batches every sample is encoded twice, so the rate is about three quarters.")
