"""Steps that make other data of an arm's data: ``step(address, folder, **options) -> address``.

``folder`` is where a step may put files; it is kept, and a step is run once for the same data and options. A step of one's own:
``package.module:function``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from diptych.files import read_json, write_json
from diptych.registry import check_options, resolve


def repeat(address: str, folder: Path, *, items: int = 100, share: float = 0.5, part: Literal["a", "b"] = "a") -> str:
    """Some samples again and again among fresh ones (``data.sources.repeated``)."""
    from diptych.data.sources.repeated import repeated

    return repeated(address, items, share, part)


STEPS: dict[str, Callable[..., str]] = {"repeat": repeat}


def check_steps(steps: dict[str, dict[str, Any]], where: str) -> None:
    for name, options in steps.items():
        check_options(resolve(name, STEPS, "step"), options, f"{where}.{name}")


def derive(address: str, steps: dict[str, dict[str, Any]], folder: Path, progress: Callable[[str], None]) -> str:
    """The address of what the steps made. What an earlier call made is taken up."""
    for name, given in steps.items():
        step = resolve(name, STEPS, "step")
        options = check_options(step, given, name)
        asked = {"data": address, "step": name, "options": options}
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:12]
        note = folder / f"{name.rpartition(':')[2]}-{digest}.json"
        if note.is_file():
            address = read_json(note)["address"]
            continue
        progress(f"{name}: {address}")
        address = step(address, note.with_suffix(""), **options)
        write_json(note, {**json.loads(json.dumps(asked, default=str)), "address": address})
    return address
