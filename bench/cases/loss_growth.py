"""How the tiled InfoNCE grows with the batch, forward and backward, d 64, fp32: memory beyond its inputs (their gradients included). The plain form's matrix alone
would take N² × 4 bytes, several times over: 69 GB each at N 131,072. Slow, since time does grow with N²: runs only if named."""

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
    bench.table(["N", "extra memory", "a pair", "s", "loss"], rows)
    bench.goal(
        f"memory a pair does not grow, to N {sizes[-1]:,}", " → ".join(f"{g / 1e3:.2f} kB" for g in grown), max(grown) <= grown[0]
    )
