"""Examples with pictures: retrieved images and generated captions, chosen by a fixed rule."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from diptych.core.arrays import unit_rows
from diptych.report.columns import TO_IMAGE
from diptych.report.drawing.marks import escape, figure, key
from diptych.report.read import Comparison, Item, Recipe, Run, readable
from diptych.report.records import finite
from diptych.training.run_files import Record

EACH = 3  # right and wrong retrievals a recipe
PICTURES = 8  # captioned pictures
LARGEST = 192  # pixels of a thumbnail's longer side
SMALL_FILE = 12_000  # bytes up to which a small picture is embedded unchanged


@dataclass
class Retrieved:
    """A text query with the images that a model ranked first."""

    item: str
    query: str
    top: list[str]  # items, best first; empty if the run did not save them
    rank: float  # of the right picture, from 1; between two ranks if it was tied

    @property
    def right(self) -> bool:
        """Whether the right image is first."""
        return self.rank == 1 and (not self.top or self.top[0] == self.item)


def retrieval_examples(comparison: Comparison) -> str:
    """Right and wrong retrievals of each recipe, HTML."""
    parts, ruled = [], False
    for index, recipe in enumerate(comparison.recipes):
        queries = retrieved(comparison, recipe)
        if not queries:
            continue
        sides = "".join(_side(comparison, title, queries, right) for title, right in (("✓ Right", True), ("✗ Wrong", False)))
        share = sum(r.right for r in queries) / len(queries)
        head = f"{key(index, recipe.label)} <span class='note'>{share:.0%} of {len(queries)} right</span>"
        state = " open" if len(comparison.recipes) <= 6 else ""
        parts.append(f'<details class="recipe"{state}><summary><h3>{head}</h3></summary><div class="sides">{sides}</div></details>')
        ruled = True
    if not ruled:
        return ""
    caption = (
        "The caption is the question; the pictures are the answers, best first; the one sought has a frame. Chosen by rule: the "
        f"first {EACH} right and the first {EACH} wrong ones in one random order of the items that is the same for all recipes."
    )
    return figure("".join(parts), caption)


def retrieved(comparison: Comparison, recipe: Recipe) -> list[Retrieved]:
    """Caption → image queries of the first run with records, else of one with embeddings.

    The records have the ranks of the reported metric; embeddings may rank differently, if the model scores in another way.
    """
    for run in recipe.runs:
        queries = _from_records(comparison, readable(run.evaluation.records, [], [], "retrieval"))
        if not any(r.top for r in queries):
            queries = _from_embeddings(comparison, run) or queries
        if queries:
            return queries
    return []


def _from_embeddings(comparison: Comparison, run: Run) -> list[Retrieved]:
    items = list(comparison.items.values())
    stored = readable(run.evaluation.embeddings, None, [])  # the section of maps reports broken files
    if stored is None:
        return []
    image, words = (unit_rows(vectors, np.float64) for vectors in stored)
    if not len(image) == len(words) == len(items):
        return []
    scores = words @ image.T
    queries = []
    for i, item in enumerate(items):
        order = np.argsort(-scores[i], kind="stable")
        rank = float((scores[i] > scores[i, i]).sum()) + 1
        query = item.captions[0] if item.captions else ""
        queries.append(Retrieved(item.id, query, [items[j].id for j in order[:3]], rank))
    return queries


def _from_records(comparison: Comparison, records: Sequence[Record]) -> list[Retrieved]:
    queries = []
    for row in records:
        name = str(row.get("item"))
        if name not in comparison.items:
            name = name.rpartition("#")[0] or name  # a further caption of the same picture
        item = comparison.items.get(name)
        query = str(row.get("caption") or (item.captions[0] if item and item.captions else ""))
        top = [str(t) for t in row.get("top") or []]
        rank = row.get("rank")
        if isinstance(rank, dict):
            rank = next((v for k, v in rank.items() if TO_IMAGE.search(str(k).lower())), None)
        rank = finite(rank)
        if rank is None and name in top:
            rank = float(top.index(name) + 1)
        if rank is not None and query:
            queries.append(Retrieved(name, query, top[:3], rank))
    return queries


def choose(queries: list[Retrieved], right: bool) -> list[Retrieved]:
    """The first right or wrong queries in a random order that is the same for all recipes."""
    order = sorted(queries, key=lambda r: r.item)
    random.Random(0).shuffle(order)
    return [r for r in order if r.right == right][:EACH]


def _side(comparison: Comparison, title: str, queries: list[Retrieved], right: bool) -> str:
    cards = "".join(_card(comparison, r) for r in choose(queries, right))
    return f"<div><h4>{title}</h4>{cards or '<p class=note>None.</p>'}</div>"


def _card(comparison: Comparison, r: Retrieved) -> str:
    shown = []
    for place, name in enumerate(r.top, 1):
        right = name == r.item
        shown.append(_thumb(comparison, name, f"{place} {'✓' if right else '✗'}", "right one" if right else "other", right))
    if r.item not in r.top:
        shown.append(_thumb(comparison, r.item, f"✓ rank {r.rank:g}", f"the picture sought, at rank {r.rank:g}", True))
    query = f'<p class="query">“{escape(r.query)}”</p>'
    return f'<article class="card">{query}<div class="thumbs">{"".join(shown)}</div></article>'


def _thumb(comparison: Comparison, name: str, mark: str, what: str, right: bool) -> str:
    item = comparison.items.get(name)
    alt = f"{what}: {item.captions[0]}" if item and item.captions else f"{what}: item {name}"
    picture = _picture(item, alt) or f'<span class="lost">{escape(name)}</span>'
    return f'<span class="thumb{" sought" if right else ""}">{picture}<span class="note">{escape(mark)}</span></span>'


def _picture(item: Item | None, alt: str) -> str:
    encoded = thumbnail(item.image) if item else None
    if not encoded:
        return ""
    address, pixels = encoded
    kind = ' class="sprite"' if pixels <= 96 else ""
    return f'<img src="{address}" alt="{escape(alt)}" loading="lazy"{kind}>'


@cache
def thumbnail(path: Path) -> tuple[str, int] | None:
    """The data URI of a small picture and its longer side in pixels; None if the file cannot be read."""
    from PIL import Image

    try:
        raw = path.read_bytes()
        with Image.open(io.BytesIO(raw)) as opened:
            largest, kind = max(opened.size), opened.format
            if largest > LARGEST or len(raw) > SMALL_FILE or kind not in ("PNG", "JPEG", "WEBP"):
                small = opened.convert("RGB")
                small.thumbnail((LARGEST, LARGEST))
                out = io.BytesIO()
                small.save(out, "JPEG", quality=80, optimize=True)
                raw, kind = out.getvalue(), "JPEG"
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    return f"data:image/{str(kind).lower()};base64,{base64.b64encode(raw).decode()}", largest


def caption_examples(comparison: Comparison) -> str:
    """Pictures with their references and the caption of each model, HTML."""
    written: dict[str, dict[int, str]] = {}
    references: dict[str, list[str]] = {}
    for index, recipe in enumerate(comparison.recipes):
        by_run = (readable(run.evaluation.captions, [], comparison.notes) for run in recipe.runs)
        for row in next((rows for rows in by_run if rows), []):
            name = str(row.get("item"))
            written.setdefault(name, {})[index] = str(row.get("generated", ""))
            references.setdefault(name, [str(x) for x in row.get("references") or []])
    if not written:
        return ""
    most = max(len(by) for by in written.values())
    names = sorted(name for name, by in written.items() if len(by) == most)
    random.Random(0).shuffle(names)
    cards = "".join(_caption_card(comparison, name, written[name], references[name]) for name in names[:PICTURES])
    caption = f"{min(PICTURES, len(names))} pictures drawn at random. “✓ word for word” marks a text that equals a reference."
    return figure(f'<div class="cards captions">{cards}</div>', caption)


def _caption_card(comparison: Comparison, name: str, written: dict[int, str], references: list[str]) -> str:
    item = comparison.items.get(name)
    alt = references[0] if references else name
    picture = _picture(item, alt) or f'<span class="lost">{escape(name)}</span>'
    same = {r.strip().lower() for r in references}
    rows = []
    for index, words in written.items():
        exact = ' <span class="mark yes">✓ word for word</span>' if words.strip().lower() in same else ""
        rows.append(f"<dt>{key(index, comparison.recipes[index].label)}</dt><dd>{escape(words) or '<i>nothing</i>'}{exact}</dd>")
    listed = "".join(f"<li>{escape(r)}</li>" for r in references[:5])
    given = f'<dt>References</dt><dd class="note"><ul>{listed}</ul></dd>' if listed else ""
    return f'<article class="card"><div class="thumb">{picture}</div><dl>{"".join(rows)}{given}</dl></article>'
