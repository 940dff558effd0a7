"""The files of an evaluation (docs/runs.md): one JSON line per item, and results that are computed from these alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from diptych.core.files import read_jsonl, write_text

Record = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """One metric of one task, with its interval and controls. None: does not apply, or is not known."""

    task: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    clusters: int
    chance: float | None = None
    higher_is_better: bool = True
    controls: Mapping[str, float | None] = field(default_factory=dict)
    ties: int = 0
    nans: int = 0
    seconds: float = 0.0
    by: str = ""  # of questions, how they were answered: generate, likelihood or score
    unparsed: int = 0  # answers that could not be parsed; they count as wrong
    band: tuple[float, float] | None = None  # the value if all of these were wrong, and if all were right
    slices: list[dict[str, Any]] = field(default_factory=list)  # {"slice": "type=count", "value", "low", "high", "n", "clusters"}


def plain(value: Any) -> Any:
    """``value`` as strict JSON: numpy becomes lists and numbers (7 digits), dataclasses objects, NaN and ±inf null."""
    if hasattr(value, "__dataclass_fields__"):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return [plain(v) for v in value]
    if isinstance(value, np.float32):
        value = float(f"{value:.7g}")  # a float32 has no more digits than these
    elif isinstance(value, np.generic):
        value = value.item()
    return value if not isinstance(value, float) or math.isfinite(value) else None


def write_json(path: Path, value: Any) -> None:
    """Write plain data to a JSON file, atomically."""
    write_text(path, json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _line(record: Record) -> str:
    return json.dumps(plain(record), ensure_ascii=False, allow_nan=False) + "\n"


def write_jsonl(path: Path, records: Iterable[Record]) -> None:
    """Write rows to a JSON-lines file, atomically."""
    write_text(path, "".join(map(_line, records)))


class Records:
    """The records of one task, appended to ``path`` as they come, or kept in memory only.

    Opening a file of an interrupted run continues it. ``folder``: where a task may write other files. An item with ``failed``
    answers counts as one without a record, so that it is asked again; its record stays until there is another.
    """

    def __init__(self, path: Path | None = None, folder: Path | None = None):
        self.path, self.folder = path, folder
        self._records: dict[str, Record] = {}
        if path is not None and path.is_file():
            self._records = {r["item"]: r for r in read_jsonl(path)}
            write_jsonl(path, self._records.values())  # drops half a line at the end, so that nothing is appended to it
        self._again = {item for item, r in self._records.items() if r.get("failed")}  # of an earlier call

    def __contains__(self, item: str) -> bool:
        return item in self._records and item not in self._again

    def __len__(self) -> int:
        return len(self._records) - len(self._again)

    @property
    def unanswered(self) -> int:
        """How many items of an earlier call have no answer, or not all of their answers."""
        return len(self._again)

    def all(self) -> list[Record]:
        """The records, those read from the file first."""
        return list(self._records.values())

    def add(self, records: Iterable[Record]) -> None:
        """Keep the records of items that have none yet."""
        fresh = [plain(r) for r in records if r["item"] not in self]
        replaced = self._again & {r["item"] for r in fresh}
        self._records.update((r["item"], r) for r in fresh)
        self._again -= replaced
        if self.path is not None and replaced:
            write_jsonl(self.path, self._records.values())
        elif self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(map(_line, fresh)))
