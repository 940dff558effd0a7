"""How the memory of the tiled InfoNCE grows with the batch, forward and backward, d 64, fp32: memory beyond its inputs (and their
gradients). In the plain form a single N × N matrix takes N² × 4 bytes, 69 GB at N 131,072, and there are several. Time does grow
with N², so this case is slow and runs only if it is named."""

from __future__ import annotations

from bench.harness import Bench, measure_memory, megabytes

SLOW = True


def run(bench: Bench) -> None:
    sizes = [2048, 8192] if bench.quick else [16384, 32768, 65536, 131072]
    rows, grown = [], []
    for n in sizes:
        m = measure_memory("bench.cases.loss_memory:prepare", timeout=3600, form="info_nce, tiled", n=n, d=64)
        grown.append(m.extra / n)
        rows.append([f"{n:,}", megabytes(m.extra), f"{m.extra / n / 1e3:.2f} kB", f"{m.seconds:.1f}", f"{m.result:.5f}"])
        print("  ", *rows[-1], flush=True)
    bench.table(["N", "extra memory", "per pair", "s", "loss"], rows)
    bench.goal(
        f"memory per pair does not grow, up to N {sizes[-1]:,}",
        " → ".join(f"{g / 1e3:.2f} kB" for g in grown),
        max(grown) <= grown[0],
    )
