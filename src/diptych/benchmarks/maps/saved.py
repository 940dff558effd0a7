"""Verdicts that are kept: measured once for weights, method and scenes, next to the run or in the user's cache."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from diptych.benchmarks.maps.items import SCENES
from diptych.benchmarks.maps.verdict import FORMAT, ITEMS, Verdict, measure
from diptych.core.errors import DiptychError
from diptych.core.files import read_json_or, write_json
from diptych.data.storage.cache import cache_directory
from diptych.inference.maps.base import Maps

FILE = "maps.json"


def file_of(address: str | Path, key: str | None) -> Path | None:
    """Where the verdicts on a model are kept: in the directory of a run, else in the user's cache; None if its weights have no
    name.
    """
    if key is None:
        return None
    path = Path(address)
    run = path.parent.parent if path.parent.name == "checkpoints" else path
    if run.is_dir():
        return run / FILE
    return cache_directory() / "maps" / f"{blake2b(key.encode(), digest_size=12).hexdigest()}.json"


def kept(file: Path | None, key: str | None, method: str = "", scenes: str = SCENES, items: int | None = None) -> list[Verdict]:
    """The verdicts in a file on the weights ``key``; a file that is damaged or of another version has none."""
    found = [] if file is None else [v for v in all_kept(file) if key is None or v.key == key]
    wanted = [v for v in found if v.scenes == scenes and (not method or v.method == method)]
    return [v for v in wanted if items is None or v.items >= items]


def verdict_on(
    address: str | Path,
    model: Any,
    maps: Maps,
    method: str = "",
    n: int = ITEMS,
    *,
    scenes: str = SCENES,
    again: bool = False,
    note: Callable[[str], None] = lambda _: None,
) -> Verdict:
    """The verdict on a map: a kept one of at least n items, else measured now and kept. again: measured in any case."""
    method, key = maps.method(method), getattr(model, "key", None)
    file = file_of(address, key)
    known = [] if again else kept(file, key, method, scenes, n)
    if known:
        return known[-1]
    made = replace(measure(maps, method, n, scenes=scenes, note=note), key=key or "")
    if file is not None:
        others = [v for v in all_kept(file) if (v.key, v.method, v.scenes) != (made.key, made.method, made.scenes)]
        with contextlib.suppress(OSError):  # a run that may not be written to: measured again the next time
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, {"verdicts": [v.as_dict() for v in [*others, made]]})
    return made


def all_kept(file: Path) -> list[Verdict]:
    """All verdicts in a file, of any weights; none if it is damaged or of another version."""
    nothing: dict[str, Any] = {}
    try:
        rows = read_json_or(file, nothing).get("verdicts", [])
        return [Verdict.from_dict(row) for row in rows if row.get("format") == FORMAT]
    except (DiptychError, AttributeError, TypeError, KeyError):
        return []
