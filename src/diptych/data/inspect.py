"""What is in a data set, before anything is trained on it: every item decoded, every broken one named."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.core.errors import counted
from diptych.core.words import words as words_of
from diptych.data.negatives import FUNCTION_WORDS
from diptych.data.source import BrokenItem, Problem, Source
from diptych.data.sources.mixture import Mixture
from diptych.data.storage.digests import digest

if TYPE_CHECKING:
    from rich.console import Console

    from diptych.core.sample import Sample

QUANTILES = {"min": 0, "5 %": 5, "median": 50, "95 %": 95, "max": 100}
SHOWN = 16  # samples on the contact sheet
ENDLESS = 2**31 - 1  # the length of a source that draws its samples; DRAWN of them are looked at
DRAWN = 1000


@dataclass
class Inspection:
    """All numbers are of the items looked at (all, unless ``limit`` was given); ``splits`` are of the whole source."""

    address: str
    items: int  # in the source
    looked_at: int
    good: int  # decoded
    captions: int
    captions_per_item: dict[int, int]  # number of captions → items
    width: dict[str, float]  # quantiles, pixels
    height: dict[str, float]
    aspect: dict[str, float]  # width / height
    fields: dict[str, int]  # field → items that have it
    classes: dict[str, int]  # class → items with this label
    class_size: dict[str, float]  # quantiles of these numbers
    lone_classes: list[str]  # with one item, or none that was read: nothing can be left out to choose settings or to test
    regions_per_item: dict[int, int]  # number of regions → items, of those that have the field
    clip_frames: dict[str, float]  # quantiles of the frames in a clip
    clip_seconds: dict[str, float]  # and of the time of its last frame
    document_texts: dict[str, float]  # quantiles of the texts in a document
    document_images: dict[str, float]
    turns: dict[str, float]  # quantiles of the turns in a conversation
    words: dict[str, float]  # quantiles of the captions' lengths, in words
    word_counts: dict[int, int]  # length in words → captions
    frequent: dict[str, int]  # the most frequent content words → occurrences
    duplicates: list[list[str]]  # items with equal pictures
    broken: list[Problem]
    splits: dict[str, int]
    fingerprint: str
    mixed: list[dict[str, Any]] = field(default_factory=list)  # of a mixture: each source, its items, its share of the draws
    sheet: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data, for JSON."""
        return asdict(self)


@dataclass
class _Seen:
    """What is kept of a decoded item."""

    index: int
    id: str
    sizes: list[tuple[int, int]]  # height and width of each of its pictures
    captions: list[str]
    digest: bytes  # of its pictures; b"": it has none
    fields: tuple[str, ...]
    label: str | None
    counts: dict[str, float]  # of regions, frames …


def inspect(address: str, out: Path | None = None, limit: int | None = None, progress: bool = True) -> Inspection:
    """Decodes the items (``limit``: at most that many, evenly spread) and counts.

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
        """What was seen of item i, or the problem if it cannot be used."""
        try:
            sample = source[i]
        except BrokenItem as error:
            return error.problem
        return _seen(i, sample)

    def results() -> Iterable[_Seen | Problem]:
        """What was seen of each item, in order; threads decode 1,024 items ahead at most."""
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for start in range(0, len(indices), 1024):
                yield from pool.map(look, indices[start : start + 1024])

    console = Console(stderr=True)  # standard output may be JSON
    result = list(track(results(), "decoding", len(indices), console=console, transient=True, disable=not progress))
    return [f for f in result if isinstance(f, _Seen)], [f for f in result if isinstance(f, Problem)]


def _seen(index: int, sample: Sample) -> _Seen:
    """Pictures are the image, or the frames of the clip and the images of the document and the conversation."""
    video, document, label = (sample.fields.get(name) for name in ("video", "document", "label"))
    pictures = [] if sample.image is None else [sample.image]
    counts: dict[str, float] = {}
    if "regions" in sample.fields:
        counts["regions"] = len(sample.fields["regions"])
    if sample.turns:
        counts["turns"] = len(sample.turns)
    if video is not None:
        counts |= {"frames": len(video.frames), "seconds": video.seconds[-1] if video.seconds else 0.0}
        pictures += video.frames
    if document is not None:
        images = [part for part in document.parts if not isinstance(part, str)]
        counts |= {"texts": len(document.parts) - len(images), "images": len(images)}
        pictures += images
    if not pictures:
        pictures = sample.images
    sizes = [picture.shape[:2] for picture in (pictures[:1] if video is not None else pictures)]
    whole = digest(b"".join(picture.tobytes() for picture in pictures)) if pictures else b""
    name = None if label is None else label.name
    return _Seen(index, sample.id, [(h, w) for h, w in sizes], sample.captions, whole, tuple(sample.fields), name, counts)


def _summary(source: Source, looked_at: int, seen: list[_Seen], broken: list[Problem]) -> Inspection:
    captions = [caption for item in seen for caption in item.captions]
    words = [words_of(caption.lower()) for caption in captions]
    lengths = [len(w) for w in words]
    content = Counter(w for ws in words for w in ws if w not in FUNCTION_WORDS and not w.isdigit())
    same: dict[bytes, list[str]] = {}
    for item in seen:
        if item.digest:
            same.setdefault(item.digest, []).append(item.id)
    sizes = [size for item in seen for size in item.sizes]
    labels = Counter(item.label for item in seen if item.label is not None)
    names = [name for name in getattr(source, "classes", None) or () if labels] or sorted(labels)

    def counted(what: str) -> list[float]:
        """The counts of the items that have them."""
        return [item.counts[what] for item in seen if what in item.counts]

    part = getattr(source, "part", None)
    splits = [part] if part else ["train", "validation", "test"]
    return Inspection(
        address=source.address,
        items=len(source),
        looked_at=looked_at,
        good=len(seen),
        captions=len(captions),
        captions_per_item=_counts(len(item.captions) for item in seen),
        width=_quantiles([width for _, width in sizes]),
        height=_quantiles([height for height, _ in sizes]),
        aspect=_quantiles([width / height for height, width in sizes]),
        fields=dict(Counter(name for item in seen for name in item.fields)),
        classes={name: labels[name] for name in names},
        class_size=_quantiles([labels[name] for name in names]),
        lone_classes=[name for name in names if labels[name] < 2],
        regions_per_item=_counts(map(int, counted("regions"))),
        clip_frames=_quantiles(counted("frames")),
        clip_seconds=_quantiles(counted("seconds")),
        document_texts=_quantiles(counted("texts")),
        document_images=_quantiles(counted("images")),
        turns=_quantiles(counted("turns")),
        words=_quantiles(lengths),
        word_counts=_counts(lengths),
        frequent=dict(content.most_common(30)),
        duplicates=[ids for ids in same.values() if len(ids) > 1],
        broken=broken,
        splits={name: len(source.split(name)) for name in splits},
        fingerprint=source.fingerprint(),
        mixed=source.shares() if isinstance(source, Mixture) else [],
    )


def _counts(values: Iterable[int]) -> dict[int, int]:
    return dict(sorted(Counter(values).items()))


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    result = np.percentile(values, list(QUANTILES.values()), method="nearest")
    return {name: round(float(value), 3) for name, value in zip(QUANTILES, result, strict=True)}


def _sheet(samples: list[Sample], out: Path) -> Path:
    from diptych.data.sheet import contact_sheet

    path = out / "contact_sheet.png"
    contact_sheet(samples, path, columns=4)
    return path


def _print_classes(console: Console, result: Inspection) -> None:
    """The classes, the largest first, how unequal they are, and those with fewer than two items."""
    from rich.markup import escape

    ordered = sorted(result.classes.items(), key=lambda entry: -entry[1])
    shown = ", ".join(f"{name} {n:,}" for name, n in ordered[:30])
    more = f" … and {len(ordered) - 30:,} more" if len(ordered) > 30 else ""
    console.print(f"{counted(len(ordered), 'class', 'classes')}: " + escape(shown) + more)
    size = result.class_size
    if size["max"] > size["min"]:
        total, half = sum(n for _, n in ordered), 0
        head = next(i for i, (_, n) in enumerate(ordered, 1) if 2 * (half := half + n) >= total)
        console.print(
            f"items a class: {size['min']:,.0f} to {size['max']:,.0f}, median {size['median']:,.0f}; half of all items are in "
            f"{counted(head, 'class', 'classes')}"
        )
    if lone := result.lone_classes:
        more = f" … and {len(lone) - 10:,} more" if len(lone) > 10 else ""
        console.print(
            f"{counted(len(lone), 'class', 'classes')} with fewer than two usable items: {escape(', '.join(lone[:10]))}{more}; "
            "nothing of these can be left out to choose settings or to test: add pictures, or leave them out"
        )


def print_inspection(result: Inspection) -> None:
    """Tables for a reader at a terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    part = "" if result.looked_at == result.items else f" ({result.looked_at:,} looked at)"
    console.print(f"[bold]{escape(result.address)}[/bold]  fingerprint {result.fingerprint}")
    console.print(
        f"{counted(result.items, 'item')}{part}, {result.good:,} good, "
        f"{counted(len(result.broken), 'problem')}, {counted(result.captions, 'caption')}"
    )
    console.print("split: " + ", ".join(f"{name} {size:,}" for name, size in result.splits.items()))
    console.print("captions an item: " + ", ".join(f"{n} × {k}" for k, n in result.captions_per_item.items()))
    console.print("fields: " + escape(", ".join(f"{name} {n:,}" for name, n in result.fields.items())))
    for each in result.mixed:
        drawn = f"{each['share']:.2%} of the draws, {each['epochs']:.3g} times its items for one time all"
        console.print(f"of {escape(each['address'])}: {each['items']:,} items, {drawn}")
    if result.classes:
        _print_classes(console, result)
    if result.regions_per_item:
        console.print("regions an item: " + ", ".join(f"{n} × {k}" for k, n in result.regions_per_item.items()))
    table = Table("", *QUANTILES)
    rows = {"width": result.width, "height": result.height, "width / height": result.aspect, "words": result.words}
    others = {
        **{"frames of a clip": result.clip_frames, "seconds of a clip": result.clip_seconds},
        **{"texts of a document": result.document_texts, "images of a document": result.document_images},
        "turns": result.turns,
    }
    for name, quantiles in {**rows, **{name: q for name, q in others.items() if q}}.items():
        table.add_row(name, *(f"{quantiles[q]:,.5g}" if q in quantiles else "–" for q in QUANTILES))
    console.print(table)
    console.print("frequent words: " + escape(", ".join(f"{w} {n}" for w, n in result.frequent.items())))
    if result.duplicates:
        first = escape(", ".join(result.duplicates[0]))
        console.print(f"equal pictures: {counted(len(result.duplicates), 'group')}, first: {first}")
    if result.broken:
        problems = Table("item", "reason", title="problems" + (" (the first 20)" if len(result.broken) > 20 else ""))
        for problem in result.broken[:20]:
            problems.add_row(escape(problem.item), escape(problem.reason))
        console.print(problems)
    if result.sheet:
        console.print(f"contact sheet: {escape(result.sheet)}")
