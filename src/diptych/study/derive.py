"""Steps that derive an arm's data from other data: ``step(address, folder, **options) -> address``.

A step may write files into ``folder``. It runs once for the same data and options; its result is kept. Your own step:
``package.module:function``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from diptych.core.files import read_json, write_json
from diptych.core.registry import check_options, resolve


def repeat(address: str, folder: Path, *, items: int = 100, share: float = 0.5, part: Literal["a", "b"] = "a") -> str:
    """The address of data in which some samples repeat among fresh ones (``data.sources.repeated``)."""
    from diptych.data.sources.repeated import repeated

    return repeated(address, items, share, part)


def curate(address: str, folder: Path, *, plan: str | dict[str, Any], set: list[str] | None = None) -> str:
    """The address of what a curation plan keeps: a preset's name, a YAML file or the plan itself. Its report is in ``folder``."""
    from diptych.curation import curate as run_plan

    return run_plan(plan, address, folder, overrides=set).address


def balance(address: str, folder: Path, *, t: int, entries: list[str] | None = None) -> str:
    """The address of data balanced as in MetaCLIP: a sample stays with probability t / count of a concept in its caption.

    entries: the concepts; None: all that the built-in scenes can show.
    """
    from diptych.data.scenes.concepts import all_concepts

    named = entries or [concept.name for concept in all_concepts()]
    steps = [
        {"concepts": {"entries": named}},
        {"balance": {"t": t}},
        {"keep": {"column": "balanced", "in": [True], "reason": "frequent"}},
    ]
    return curate(address, folder, plan={"name": "balance", "about": "MetaCLIP's balancing", "steps": steps})


def dirty_pool(address: str, folder: Path, *, rows: int = 10_000, seed: int = 0) -> str:
    """The address of a synthetic pool with known faults (``diptych curate pool``), which replaces the data."""
    from diptych.curation.dirty_pool.pool import write_pool

    if not (folder / "pool.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)  # an incomplete pool
        write_pool(folder, rows, seed)
    return f"parquet:{folder}/pool/*.parquet"


STEPS: dict[str, Callable[..., str]] = {"repeat": repeat, "curate": curate, "balance": balance, "dirty_pool": dirty_pool}


def check_steps(steps: dict[str, dict[str, Any]], where: str) -> None:
    """Raises DiptychError if a step does not exist or does not take its options; ``where`` names them in the message."""
    for name, options in steps.items():
        check_options(resolve(name, STEPS, "step"), options, f"{where}.{name}")


def derive(address: str, steps: dict[str, dict[str, Any]], folder: Path, progress: Callable[[str], None]) -> str:
    """The address of the derived data. Results of earlier calls are reused."""
    for name, given in steps.items():
        step = resolve(name, STEPS, "step")
        options = check_options(step, given, name)
        request = {"data": address, "step": name, "options": options}
        digest = hashlib.sha256(json.dumps(request, sort_keys=True, default=str).encode()).hexdigest()[:12]
        note = folder / f"{name.rpartition(':')[2]}-{digest}.json"
        if note.is_file():
            address = read_json(note)["address"]
            continue
        progress(f"{name}: {address}")
        address = step(address, note.with_suffix(""), **options)
        write_json(note, {**json.loads(json.dumps(request, default=str)), "address": address})
    return address
