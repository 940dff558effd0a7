"""Steps that make other data of an arm's data: ``step(address, folder, **options) -> address``.

``folder`` is where a step may put files; it is kept, and a step is run once for the same data and options. A step of one's own:
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
    """Some samples again and again among fresh ones (``data.sources.repeated``)."""
    from diptych.data.sources.repeated import repeated

    return repeated(address, items, share, part)


def curate(address: str, folder: Path, *, plan: str | dict[str, Any], set: list[str] | None = None) -> str:
    """What a curation plan (a preset's name, a YAML file or the plan itself) keeps; its report lies in ``folder``."""
    from diptych.curation import curate as run_plan

    return run_plan(plan, address, folder, overrides=set).address


def balance(address: str, folder: Path, *, t: int, entries: list[str] | None = None) -> str:
    """MetaCLIP's balancing: a sample stays with the chance t / count of one of the concepts its caption names.

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
    """A pool with planted faults (``diptych curate pool``), instead of what there was."""
    from diptych.curation.dirty_pool.pool import write_pool

    if not (folder / "pool.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)  # half a pool
        write_pool(folder, rows, seed)
    return f"parquet:{folder}/pool/*.parquet"


STEPS: dict[str, Callable[..., str]] = {"repeat": repeat, "curate": curate, "balance": balance, "dirty_pool": dirty_pool}


def check_steps(steps: dict[str, dict[str, Any]], where: str) -> None:
    for name, options in steps.items():
        check_options(resolve(name, STEPS, "step"), options, f"{where}.{name}")


def derive(address: str, steps: dict[str, dict[str, Any]], folder: Path, progress: Callable[[str], None]) -> str:
    """The address of what the steps made. What an earlier call made is taken up."""
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
