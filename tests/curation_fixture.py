"""A small pool with known faults, in several formats, and operators that tests need."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from diptych.curation.operators.base import Operator, Reduce, arrays

WORDS = ["red", "green", "blue", "old", "new", "tall", "small", "bright", "round", "quiet"]


def picture(i: int, side: int = 32) -> bytes:
    """A JPEG of blocks of colour; i decides."""
    rng = np.random.default_rng(i)
    blocks = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.kron(blocks, np.ones((side // 4, side // 4, 1), np.uint8))).save(file, "JPEG", quality=90)
    return file.getvalue()


def caption(i: int) -> str:
    return " ".join(WORDS[(i * 7 + k) % len(WORDS)] for k in range(1 + i % 6)) + f" number {i}"


def make_folder(root: Path, n: int = 40) -> str:
    """Pictures with a text beside each: number 3 is no image, 5 has an empty text, 7 none, 11 is cut short, 30 and 31 repeat 20."""
    root.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        same = 20 if i in (30, 31) else i
        data = picture(same, 16 + 4 * (same % 8))
        data = b"no image" if i == 3 else picture(i, 64)[:400] if i == 11 else data
        (root / f"p{i:03d}.jpg").write_bytes(data)
        if i != 7:
            (root / f"p{i:03d}.txt").write_text("" if i == 5 else caption(i))
    return f"folder:{root}"


def make_parquet(root: Path, n: int = 40, files: int = 3, side: int = 16, group: int = 5) -> str:
    """Images inside, a score beside, several files."""
    root.mkdir(parents=True, exist_ok=True)
    for f in range(files):
        rows = range(f * n // files, (f + 1) * n // files)
        table = pa.table(
            {
                "image": pa.array([b"broken" if i == 4 else picture(i, side) for i in rows], pa.binary()),
                "caption": [caption(i) for i in rows],
                "similarity": [(i * 37 % 100) / 100 for i in rows],
            }
        )
        pq.write_table(table, root / f"{f:03d}.parquet", row_group_size=group)
    return f"parquet:{root}/*.parquet"


@dataclass(frozen=True, kw_only=True)
class Loud(Operator):
    """Says in a file each time that it is asked, so that tests can count; ``factor`` changes the result."""

    name = "loud"
    inputs = ("text",)
    outputs = {"loud": pa.int32()}  # noqa: RUF012
    log: str
    factor: int = 1

    def compute(self, batch: pa.RecordBatch) -> Any:
        with open(self.log, "a") as file:
            file.write(f"{batch.num_rows}\n")
        return {"loud": [self.factor * len(t) for t in batch["text"].to_pylist()]}


@dataclass(frozen=True, kw_only=True)
class Mean(Operator):
    """Mean of the pixels; ``wait`` seconds for each batch."""

    name = "mean"
    inputs = ("pixels",)
    outputs = {"mean": pa.float64()}  # noqa: RUF012
    wait: float = 0.0

    def compute(self, batch: pa.RecordBatch) -> Any:
        time.sleep(self.wait)
        return {"mean": [float(p.mean()) for p in arrays(batch["pixels"])]}


@dataclass(frozen=True, kw_only=True)
class Deadly(Operator):
    """Kills its own process at the row ``at``: the first ``times`` times, as told by files in ``where``."""

    name = "deadly"
    inputs = ("text",)
    outputs = {"alive": pa.bool_()}  # noqa: RUF012
    at: str
    where: str
    times: int = 1

    def compute(self, batch: pa.RecordBatch) -> Any:
        if any(self.at in t for t in batch["text"].to_pylist()):
            deaths = len(list(Path(self.where).glob("death-*")))
            if deaths < self.times:
                (Path(self.where) / f"death-{deaths}").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return {"alive": [True] * batch.num_rows}


@dataclass(frozen=True, kw_only=True)
class DeadlyReduce(Reduce):
    """Kills whoever summarises."""

    name = "deadly_reduce"
    inputs = ("text",)
    outputs = {"never": pa.bool_()}  # noqa: RUF012

    def summarise(self, batch: pa.RecordBatch) -> pa.Table:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    def combine(self, summaries: Any) -> pa.Table:
        raise AssertionError

    def decide(self, batch: pa.RecordBatch, state: pa.Table) -> Any:
        raise AssertionError


@dataclass(frozen=True, kw_only=True)
class OnModel(Operator):
    """Asks for a worker that keeps a model."""

    name = "on_model"
    resources = "model"
    inputs = ("text", "pixels")
    outputs = {"on_model": pa.float64()}  # noqa: RUF012

    def compute(self, batch: pa.RecordBatch) -> Any:
        pairs = zip(batch["text"].to_pylist(), arrays(batch["pixels"]), strict=True)
        return {"on_model": [len(t) + float(p.std()) for t, p in pairs]}


def plan(*steps: Any, shard: int = 7, **more: Any) -> dict[str, Any]:
    return {"name": "test", "pool": {"shard": shard}, "steps": list(steps), **more}


FULL = plan(
    "text_length",
    "image_size",
    {"curation_fixture:Mean": {}},
    {"keep": {"column": "words", "min": 4, "reason": "few words"}},
    "image_hash",
    {"curation_fixture:OnModel": {}},
    "same_image",
    {"keep": {"column": "same_image_as", "unique": True, "reason": "copy"}},
    {"keep": {"column": "mean", "top": 0.8, "reason": "dark"}},
    {"keep": {"random": 0.9, "reason": "chance"}},
)


def tree(root: Path) -> dict[str, str]:
    """Hashes of all files of a result that must not depend on who made it."""
    files = [p for p in sorted(root.rglob("*")) if p.is_file()]
    kept = [p for p in files if p.relative_to(root).parts[0] in ("data", "decisions", "states", "manifest.json", "plan.yaml")]
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in kept}
