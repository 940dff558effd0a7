"""``manifest.json`` and ``problems.jsonl``: what a packing holds, its source and parameters, and what could not be packed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from diptych.core.errors import DiptychError
from diptych.core.files import read_json, read_jsonl, write_json, write_jsonl
from diptych.data.packing.shard import Parameters, Written
from diptych.data.source import Problem

NAME, PROBLEMS = "manifest.json", "problems.jsonl"
PACKAGES = ("diptych", "pyarrow", "pillow", "simplejpeg", "numpy")
OPTIONS = {
    "size": "--size",
    "format": "--format",
    "quality": "--quality",
    "split": "--split",
    "items": "--limit",
    "address": "ADDRESS",
}


class Manifest:
    """The state of a packing on disk; written after each shard, so a killed run resumes from there."""

    def __init__(
        self,
        out: Path,
        parameters: Parameters,
        part: str | None,
        native_size: int | None,
        problems: list[Problem],
        classes: list[str] | None = None,
    ):
        self.out, self.parameters, self.part, self.native_size = out, parameters, part, native_size
        self.classes = classes  # of labels
        self.opening = problems  # found when the source was opened
        self.shards: dict[int, Written] = {}
        self.seconds = 0.0

    def take_up(self) -> int:
        """Reads the finished shards of an earlier run with the same parameters; returns how many items those cover. DiptychError
        for other parameters.
        """
        path = self.out / NAME
        if not path.is_file():
            others = [p.name for p in self.out.iterdir() if not p.name.startswith(".")] if self.out.is_dir() else []
            if others:
                raise DiptychError(f"{self.out} is not empty and holds no packing ({others[0]} …); choose another OUT")
            return 0
        try:
            held = read_json(path)
            differs = [k for k, v in asdict(self.parameters).items() if held["parameters"].get(k) != v]
            shards, self.seconds = held["shards"], held["seconds"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DiptychError(
                f"{path}: not a manifest of packed data ({error}); remove {self.out} or choose another OUT"
            ) from error
        if differs:
            raise DiptychError(self._refusal(held["parameters"], differs))
        problems: dict[int, list[Problem]] = {}
        for row in read_jsonl(self.out / PROBLEMS):
            problems.setdefault(row["shard"], []).append(Problem(row["item"], row["reason"]))
        for shard in shards:
            file = self.out / shard["file"]
            if file.is_file() and file.stat().st_size == shard["bytes"]:
                self.shards[shard["number"]] = Written(**shard, problems=problems.get(shard["number"], []))
        return sum(self.covers(number) for number in self.shards)

    def covers(self, number: int) -> int:
        """How many items of the source a shard covers."""
        p = self.parameters
        return min(p.shard_items, p.items - number * p.shard_items)

    def _refusal(self, held: dict[str, Any], differs: list[str]) -> str:
        if "fingerprint" in differs and not set(differs) & {"address", "split", "items"}:
            return (
                f"{self.out} was packed from {held['address']} when that held other data (fingerprint {held['fingerprint']}, "
                f"now {self.parameters.fingerprint}); remove it or choose another OUT"
            )
        noted = [
            name
            for name in differs
            if name != "fingerprint" and name != "rows" and not (name == "shard_items" and "format" in differs)
        ]
        changed = ", ".join(f"{OPTIONS.get(n, n)} {held.get(n)} (now {getattr(self.parameters, n)})" for n in noted)
        return f"{self.out} was packed with other parameters: {changed}; use the same parameters, remove it, or choose another OUT"

    def add(self, written: Written, seconds: float) -> None:
        """Notes a finished shard and writes the manifest. seconds: spent on the packing so far."""
        self.shards[written.number] = written
        self.write(seconds)

    @property
    def problems(self) -> list[Problem]:
        """What could not be packed: problems found when the source was opened, then those of the shards in order."""
        return [*self.opening, *(p for _, shard in sorted(self.shards.items()) for p in shard.problems)]

    def write(self, seconds: float) -> dict[str, Any]:
        """Writes the problems first, then the manifest: problems of a shard that the manifest does not name yet are ignored."""
        self.seconds = seconds
        shards = [shard for _, shard in sorted(self.shards.items())]
        rows: list[dict[str, Any]] = [{"item": p.item, "reason": p.reason, "shard": None} for p in self.opening]
        rows += [{"item": p.item, "reason": p.reason, "shard": s.number} for s in shards for p in s.problems]
        write_jsonl(self.out / PROBLEMS, rows)
        content = self.content(shards)
        write_json(self.out / NAME, content)
        return content

    def content(self, shards: list[Written]) -> dict[str, Any]:
        """The content of the manifest file for these shards. Its fingerprint is a hash of the parameters and of all shards."""
        parameters = asdict(self.parameters)
        total = hashlib.blake2b(json.dumps(parameters, sort_keys=True).encode(), digest_size=16)
        for shard in shards:
            total.update(shard.blake2b.encode())
        return {
            "complete": sum(self.covers(s.number) for s in shards) == self.parameters.items,
            "fingerprint": total.hexdigest(),
            "items": sum(s.items for s in shards),
            "broken": sum(len(s.problems) for s in shards),
            "bytes": sum(s.bytes for s in shards),
            "seconds": round(self.seconds, 2),
            "part": self.part,
            "native_size": self.native_size,
            "fields": {name: sum(s.fields[name] for s in shards) for name in (shards[0].fields if shards else ())},
            "classes": self.classes,
            "parameters": parameters,
            "versions": {name: _version(name) for name in PACKAGES},
            "shards": [s.as_json() for s in shards],
        }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
