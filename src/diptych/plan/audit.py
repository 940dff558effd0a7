"""What was planned against what a run then took. Plans are kept in the cache by recipe; ``diptych train`` adds what was true."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.config.recipe import Recipe
from diptych.core.files import append_jsonl, read_json_or, read_jsonl, write_json
from diptych.data.storage.cache import cache_directory
from diptych.plan.estimate import Estimate

MEMORY, TIME = 0.10, 0.15  # how far a prediction may be off


def key_of(recipe: Recipe) -> str:
    """A short hash of everything in a recipe that its cost depends on: all but its seed, name and texts."""
    content = recipe.model_dump(mode="json", exclude={"seed", "name", "about", "cite", "trackers"})
    return hashlib.blake2b(repr(sorted(content.items())).encode(), digest_size=8).hexdigest()


def keep(recipe: Recipe, estimate: Estimate, folder: Path | None = None) -> None:
    """Keep a plan, so that a run of the recipe is compared with it."""
    place = (folder or cache_directory() / "plans") / f"{key_of(recipe)}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    low, high = estimate.seconds_range
    write_json(place, {"seconds": estimate.seconds, "range": [low, high], "peak": estimate.peak, "fits": estimate.fits})


def note(recipe: Recipe, spent: Mapping[str, Any], folder: Path | None = None) -> bool:
    """Add what a run took to the audit, if there is a plan of its recipe; whether there was."""
    place = folder or cache_directory() / "plans"
    planned: dict[str, Any] = read_json_or(place / f"{key_of(recipe)}.json", {})
    if not planned or not spent.get("finished"):
        return False
    actual = {"seconds": spent["seconds"], "peak": spent["peak_memory_bytes"]}
    append_jsonl(place / "audit.jsonl", {"recipe": recipe.name, "key": key_of(recipe), "planned": planned, "actual": actual})
    return True


@dataclass(frozen=True)
class Audit:
    """How good the plans were: the shares of runs within 15 % of the time, within 10 % of the memory, within the range given."""

    runs: int
    time: float
    memory: float
    covered: float
    rows: tuple[dict[str, Any], ...]


def audit(folder: Path | None = None) -> Audit | None:
    """All runs that had a plan; None if there are none."""
    place = (folder or cache_directory() / "plans") / "audit.jsonl"
    rows: Sequence[dict[str, Any]] = read_jsonl(place) if place.is_file() else []
    if not rows:
        return None
    shown = []
    for row in rows:
        planned, actual = row["planned"], row["actual"]
        shown.append(
            {
                "recipe": row["recipe"],
                "seconds": planned["seconds"] / actual["seconds"],
                "peak": planned["peak"] / actual["peak"],
                "covered": planned["range"][0] <= actual["seconds"] <= planned["range"][1],
            }
        )
    n = len(shown)
    return Audit(
        runs=n,
        time=sum(abs(r["seconds"] - 1) <= TIME for r in shown) / n,
        memory=sum(abs(r["peak"] - 1) <= MEMORY for r in shown) / n,
        covered=sum(r["covered"] for r in shown) / n,
        rows=tuple(shown),
    )
