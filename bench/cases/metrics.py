"""`diptych metrics` on large files: a million rows of positive and negative scores as JSON lines, two per image; and a similarity
matrix of 5,000 images and 25,000 captions on disk, five captions per image. From the file to the numbers of the table, including
intervals, each in a new process."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import Bench, measure_memory, megabytes


def pairs(folder: str, n: int) -> Callable[[], Any]:
    from diptych.benchmarks.matching.pairs import score_file

    path = Path(folder) / "scores.jsonl"
    rng = np.random.default_rng(0)
    scores = zip(rng.random(n) + 0.1, rng.random(n), strict=True)
    with path.open("w") as file:
        for i, (right, wrong) in enumerate(scores):
            file.write(f'{{"id": {i}, "image": "{i // 2}.jpg", "positive": {right:.6f}, "negative": {wrong:.6f}}}\n')

    def work() -> Any:
        cpu = time.process_time()
        return score_file(path)[0].value, time.process_time() - cpu

    return work


def retrieval(folder: str, n: int) -> Callable[[], Any]:
    import json

    from diptych.benchmarks.matching.retrieval import score_file

    path, positives = Path(folder) / "similarity.npy", Path(folder) / "positives.json"
    matrix = np.lib.format.open_memmap(path, "w+", np.float32, (n, 5 * n))
    rng = np.random.default_rng(0)
    for i in range(n):
        matrix[i] = rng.normal(size=5 * n)
        matrix[i, 5 * i : 5 * i + 5] += 2.5
    matrix.flush()
    positives.write_text(json.dumps([list(range(5 * i, 5 * i + 5)) for i in range(n)]))

    def work() -> Any:
        cpu = time.process_time()
        return score_file(path, positives)[0].value, time.process_time() - cpu

    return work


def run(bench: Bench) -> None:
    rows, images = (20_000, 200) if bench.quick else (1_000_000, 5000)
    table = []
    with tempfile.TemporaryDirectory() as folder:
        score = measure_memory("bench.cases.metrics:pairs", folder=folder, n=rows)
        table.append([f"{rows:,} pairs", f"{score.seconds:.1f} s", f"{score.result[1]:.1f} s", megabytes(score.peak)])
        matrix = measure_memory("bench.cases.metrics:retrieval", folder=folder, n=images)
        table.append(
            [
                f"retrieval, {images:,} × {5 * images:,}",
                f"{matrix.seconds:.1f} s",
                f"{matrix.result[1]:.1f} s",
                megabytes(matrix.peak),
            ]
        )
    bench.table(["", "wall", "CPU", "peak memory of the process"], table)
    bench.goal("a million pairs in 5 s of CPU", f"{score.result[1]:.1f} s", score.result[1] < 5)
    bench.goal("the matrix within 2 GB, including the pages of the file", megabytes(matrix.peak), matrix.peak < 2e9)
