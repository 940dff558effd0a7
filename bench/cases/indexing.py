"""Indexing a folder of pictures by `conse`, from files to vectors on disk, against what the model itself needs for the same pictures,
already decoded, in calls of 64. 10,000 JPEG files of 320 × 240 pixels, no two alike, reading and writing included; all cores.

The model's own rate is the mean of 512 pictures before and 512 after, so that a machine that slows down does not count for one side."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.harness import Bench, cpu_seconds, rate
from diptych.data.sources import open_source
from diptych.index.index import Index
from diptych.inference.load import load

SLOW = True  # several minutes
GOAL = 0.9
CALL = 64


def run(bench: Bench) -> None:
    count, alone = (200, 64) if bench.quick else (10_000, 512)
    model = load("conse", "cpu")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "pictures"
        shown = write(place, count)[:alone]
        embed(model, shown[:CALL])
        before = embed(model, shown)
        with Index.create(Path(folder) / "index", f"folder:{place}", model, "conse") as index:
            began, used = time.perf_counter(), cpu_seconds()
            index.update(model)
            seconds, processor = time.perf_counter() - began, cpu_seconds() - used
            assert len(index) == count, f"{len(index)} of {count} pictures are in the index"
        after = embed(model, shown)
    own = 2 * len(shown) / (before + after)
    share = count / seconds / own
    bench.table(
        ["", "pictures", "seconds", "pictures/s", "processor time a picture"],
        [
            ["the model alone, before", str(len(shown)), f"{before:.1f}", rate(len(shown) / before), ""],
            ["`diptych index`", f"{count:,}", f"{seconds:.1f}", rate(count / seconds), f"{1e3 * processor / count:.1f} ms"],
            ["the model alone, after", str(len(shown)), f"{after:.1f}", rate(len(shown) / after), ""],
        ],
    )
    bench.goal(f"{count:,} pictures are indexed at ≥ 90 % of the model's own rate", f"{100 * share:.0f} %", share >= GOAL)


def write(place: Path, count: int) -> list[np.ndarray]:
    """JPEG files of enlarged scenes with noise of their own, and the first thousand as they are read back."""
    place.mkdir()
    source, rng = open_source(f"scenes:small?length={max(count, 100)}"), np.random.default_rng(0)
    rows, columns = np.arange(240) * 48 // 240, np.arange(320) * 48 // 320
    noise = rng.integers(-8, 9, (64, 240, 320, 3))
    read = []
    for i in range(count):
        scene = source[i].image
        assert scene is not None
        picture = np.clip(scene[rows][:, columns].astype(int) + noise[rng.integers(64)], 0, 255).astype(np.uint8)
        path = place / f"{i:05d}.jpg"
        Image.fromarray(picture).save(path, quality=90)
        if len(read) < 1000:
            read.append(np.asarray(Image.open(path).convert("RGB")))
    return read


def embed(model: Any, pictures: list[np.ndarray]) -> float:
    """Seconds that the model needs for these pictures."""
    began = time.perf_counter()
    for i in range(0, len(pictures), CALL):
        model.embed_image(pictures[i : i + CALL])
    return time.perf_counter() - began
