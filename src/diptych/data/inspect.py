"""What is in a data set, before anything is trained on it: every item decoded, every broken one named."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.data.negatives import FUNCTION_WORDS
from diptych.data.source import BrokenItem, Problem, Source
from diptych.data.storage.digests import digest

if TYPE_CHECKING:
    from diptych.core.sample import Sample

QUANTILES = {"min": 0, "5 %": 5, "median": 50, "95 %": 95, "max": 100}
SHOWN = 16  # samples on the contact sheet
ENDLESS = 2**31 - 1  # the length of a source that draws its samples; of such, DRAWN are looked at
DRAWN = 1000


@dataclass
class Inspection:
    """All numbers are of the items looked at, which are all unless ``limit`` was given; ``splits`` of the whole."""

    address: str
    items: int  # in the source
    looked_at: int
    good: int  # decoded
    captions: int
    captions_per_item: dict[int, int]  # number of captions → items
    width: dict[str, float]  # quantiles, pixels
    height: dict[str, float]
    aspect: dict[str, float]  # width / height
    words: dict[str, float]  # quantiles of the captions' lengths, in words
    word_counts: dict[int, int]  # length in words → captions
    frequent: dict[str, int]  # the most frequent content words → occurrences
    duplicates: list[list[str]]  # items with equal images
    broken: list[Problem]
    splits: dict[str, int]
    fingerprint: str
    sheet: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Seen:
    """What is kept of a decoded item."""

    index: int
    id: str
    size: tuple[int, int]  # height, width
    captions: list[str]
    digest: bytes


def inspect(address: str, out: Path | None = None, limit: int | None = None, progress: bool = True) -> Inspection:
    """Decodes the items (``limit``: that many, evenly spread) and counts.

    With ``out``, writes ``inspection.json`` and a contact sheet there. Raises ``DiptychError`` for an address that
    cannot be opened.
    """
    from diptych.data.sources import open_source

    source = open_source(address)
    if limit is None and len(source) >= ENDLESS:
        limit = DRAWN
    indices = _spread(len(source), limit)
    seen, broken = _look(source, indices, progress)
    result = _summary(source, len(indices), seen, [*source.problems, *broken])
    if out is not None:
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        if seen:
            result.sheet = str(_sheet([source[seen[i].index] for i in _spread(len(seen), SHOWN)], out))
        (out / "inspection.json").write_text(json.dumps(result.to_dict(), indent=1, ensure_ascii=False) + "\n", "utf-8")
    return result


def _spread(total: int, wanted: int | None) -> Sequence[int]:
    if wanted is None or wanted >= total:
        return range(total)
    return [i * total // wanted for i in range(wanted)]


def _look(source: Source, indices: Sequence[int], progress: bool) -> tuple[list[_Seen], list[Problem]]:
    from rich.console import Console
    from rich.progress import track

    def look(i: int) -> _Seen | Problem:
        try:
            sample = source[i]
        except BrokenItem as error:
            return error.problem
        assert sample.image is not None
        height, width = sample.image.shape[:2]
        return _Seen(i, sample.id, (height, width), sample.captions, digest(sample.image.tobytes()))

    def results() -> Iterable[_Seen | Problem]:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for start in range(0, len(indices), 1024):
                yield from pool.map(look, indices[start : start + 1024])

    console = Console(stderr=True)  # standard output may be JSON
    found = list(track(results(), "decoding", len(indices), console=console, transient=True, disable=not progress))
    return [f for f in found if isinstance(f, _Seen)], [f for f in found if isinstance(f, Problem)]


def _summary(source: Source, looked_at: int, seen: list[_Seen], broken: list[Problem]) -> Inspection:
    captions = [caption for item in seen for caption in item.captions]
    words = [re.findall(r"\w+(?:['’-]\w+)*", caption.lower()) for caption in captions]
    lengths = [len(w) for w in words]
    content = Counter(w for ws in words for w in ws if w not in FUNCTION_WORDS and not w.isdigit())
    same: dict[bytes, list[str]] = {}
    for item in seen:
        same.setdefault(item.digest, []).append(item.id)
    part = getattr(source, "part", None)
    splits = [part] if part else ["train", "validation", "test"]
    return Inspection(
        address=source.address,
        items=len(source),
        looked_at=looked_at,
        good=len(seen),
        captions=len(captions),
        captions_per_item=_counts(len(item.captions) for item in seen),
        width=_quantiles([item.size[1] for item in seen]),
        height=_quantiles([item.size[0] for item in seen]),
        aspect=_quantiles([item.size[1] / item.size[0] for item in seen]),
        words=_quantiles(lengths),
        word_counts=_counts(lengths),
        frequent=dict(content.most_common(30)),
        duplicates=[ids for ids in same.values() if len(ids) > 1],
        broken=broken,
        splits={name: len(source.split(name)) for name in splits},
        fingerprint=source.fingerprint(),
    )


def _counts(values: Iterable[int]) -> dict[int, int]:
    return dict(sorted(Counter(values).items()))


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    found = np.percentile(values, list(QUANTILES.values()), method="nearest")
    return {name: round(float(value), 3) for name, value in zip(QUANTILES, found, strict=True)}


def _sheet(samples: list[Sample], out: Path) -> Path:
    from diptych.data.sheet import contact_sheet

    path = out / "contact_sheet.png"
    contact_sheet(samples, path, columns=4)
    return path


def print_inspection(result: Inspection) -> None:
    """Tables for a reader at a terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    part = "" if result.looked_at == result.items else f" ({result.looked_at:,} looked at)"
    console.print(f"[bold]{escape(result.address)}[/bold]  fingerprint {result.fingerprint}")
    console.print(
        f"{result.items:,} items{part}, {result.good:,} good, {len(result.broken):,} problems, {result.captions:,} captions"
    )
    console.print("split: " + ", ".join(f"{name} {size:,}" for name, size in result.splits.items()))
    console.print("captions an item: " + ", ".join(f"{n} × {k}" for k, n in result.captions_per_item.items()))
    table = Table("", *QUANTILES)
    rows = {"width": result.width, "height": result.height, "width / height": result.aspect, "words": result.words}
    for name, quantiles in rows.items():
        table.add_row(name, *(f"{quantiles[q]:,.5g}" if q in quantiles else "–" for q in QUANTILES))
    console.print(table)
    console.print("frequent words: " + escape(", ".join(f"{w} {n}" for w, n in result.frequent.items())))
    if result.duplicates:
        first = escape(", ".join(result.duplicates[0]))
        console.print(f"equal images: {len(result.duplicates):,} groups, first: {first}")
    if result.broken:
        problems = Table("item", "reason", title="problems" + (" (the first 20)" if len(result.broken) > 20 else ""))
        for problem in result.broken[:20]:
            problems.add_row(escape(problem.item), escape(problem.reason))
        console.print(problems)
    if result.sheet:
        console.print(f"contact sheet: {escape(result.sheet)}")
