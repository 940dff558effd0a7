"""A curation plan on pools of 10,000, 30,000 and 100,000 rows with two local workers: peak memory, and rows per second of each
operator.

The pool is Parquet, 5,000 rows per file, JPEGs of 64 × 64 pixels with captions of 3 to 14 words. The plan has operators on texts,
on files, on pixels, exact and perceptual copies over all rows, and a top fraction. The cost of each operator is measured on the
largest pool, that of `image_quality` and `language`, which are slower, on a pool of 5,000. Memory is the sum over the main process
and both workers of their private memory and their share of the shared memory (Pss), sampled twenty times a second."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import ROOT, Bench

WORDS = [
    "a",
    "the",
    "red",
    "blue",
    "old",
    "small",
    "dog",
    "cat",
    "tree",
    "house",
    "street",
    "boat",
    "in",
    "on",
    "near",
    "under",
    "with",
    "and",
    "of",
    "sky",
    "grass",
    "table",
    "window",
    "bright",
]
PLAN: dict[str, Any] = {
    "name": "bench",
    "pool": {"shard": 1000},
    "steps": [
        "text_length",
        "text_quality",
        "image_size",
        "image_hash",
        {"keep": {"column": "words", "min": 4}},
        {"keep": {"column": "word_repetition", "max": 0.5}},
        "same_image",
        {"keep": {"column": "same_image_as", "unique": True}},
        {"near_image": {"distance": 4}},
        {"keep": {"column": "near_image_of", "unique": True}},
        {"keep": {"column": "characters", "top": 0.8}},
    ],
}


def make_pool(root: Path, rows: int, per_file: int = 5000) -> str:
    """Blocks of colour, no two alike but for every fiftieth row, which repeats the one before."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import simplejpeg

    root.mkdir(parents=True)
    for first in range(0, rows, per_file):
        images, captions = [], []
        for i in range(first, min(first + per_file, rows)):
            rng = np.random.default_rng(i - 1 if i % 50 == 49 else i)
            blocks = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            images.append(simplejpeg.encode_jpeg(np.kron(blocks, np.ones((8, 8, 1), np.uint8)), quality=85))
            captions.append(" ".join(rng.choice(WORDS, rng.integers(3, 15))))
        table = pa.table({"image": pa.array(images, pa.binary()), "caption": captions})
        pq.write_table(table, root / f"{first // per_file:03d}.parquet", row_group_size=1000)
    return f"parquet:{root}/*.parquet"


def family(pid: int) -> list[int]:
    """The process and all below it."""
    found = [pid]
    for member in found:
        try:
            for thread in os.listdir(f"/proc/{member}/task"):
                found += [int(p) for p in Path(f"/proc/{member}/task/{thread}/children").read_text().split()]
        except OSError:
            continue
    return found


def pss(pid: int) -> int:
    """Bytes."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return 1024 * next((int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")), 0)


def curated(data: str, out: Path, plan: dict[str, Any] = PLAN) -> tuple[float, int, dict[str, Any]]:
    """Seconds, bytes at the peak, costs of a run in processes of its own."""
    script = (
        "import json, sys\nfrom diptych.curation import curate\n"
        "if __name__ == '__main__': curate(json.loads(sys.argv[1]), sys.argv[2], sys.argv[3], workers=2)"
    )
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(script)
        file.flush()
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        began, peak = time.perf_counter(), 0
        process = subprocess.Popen([sys.executable, file.name, json.dumps(plan), data, str(out)], env=environment)
        while process.poll() is None:
            peak = max(peak, sum(map(pss, family(process.pid))))
            time.sleep(0.05)
        if process.returncode:
            raise RuntimeError(f"curation failed with status {process.returncode}")
        return time.perf_counter() - began, peak, json.loads((out / "costs.json").read_text())


def run(bench: Bench) -> None:
    sizes = (2000, 4000) if bench.quick else (10_000, 30_000, 100_000)
    root = Path(tempfile.mkdtemp(prefix="curation-"))
    try:
        peaks, rows, costs = [], [], {}
        for n in sizes:
            data = make_pool(root / f"pool-{n}", n)
            seconds, peak, costs = curated(data, root / f"out-{n}")
            peaks.append(peak)
            rows.append([f"{n:,}", f"{peak / 1e6:,.0f}", f"{seconds:.1f}", f"{n / seconds:,.0f}"])
            shutil.rmtree(root / f"out-{n}")
        bench.table(["rows", "peak memory, MB", "seconds", "rows/s, two workers"], rows, "Memory by rows")
        slower = {"name": "slower", "steps": ["language", "image_quality", {"keep": {"column": "language", "in": ["en"]}}]}
        data = make_pool(root / "small", 500 if bench.quick else 5000)
        _, _, more = curated(data, root / "out-small", slower)
        costs["operators"] |= {k: v for k, v in more["operators"].items() if k in ("language", "image_quality")}
        growth = peaks[-1] / peaks[0]
        bench.goal(
            f"memory does not grow with rows: {sizes[-1]:,} rows take at most 1.15 × as much as {sizes[0]:,}",
            f"{growth:.2f} ×",
            growth <= 1.15,
        )
        operators = sorted(costs["operators"].items(), key=lambda pair: -pair[1]["seconds"])
        told = [[name, f"{c['seconds']:.2f}", f"{c['rows'] / c['seconds']:,.0f}" if c["rows"] else "–"] for name, c in operators]
        bench.table(["operator", "worker seconds", "rows/s per core"], told, f"What {sizes[-1]:,} rows cost")
        rate = costs["operators"]["text_length"]["rows"] / costs["operators"]["text_length"]["seconds"]
        bench.goal("operators on metadata: at least 100,000 rows/s per core (text_length)", f"{rate:,.0f}", rate >= 100_000)
        bench.numbers.update(sizes=list(sizes), peaks=peaks, costs=costs)
    finally:
        shutil.rmtree(root, ignore_errors=True)
