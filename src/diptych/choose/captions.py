"""``diptych choose`` for pictures with captions: how well each model finds a picture by its caption, as it is and adapted.

Collections of one's own are small, so every picture is tested once, by nested cross-validation: in each of the outer folds the
settings are chosen by an inner cross-validation on the other pictures, and what was learned on these is tested on the fold. A
caption is looked for among the pictures of its fold, of which training saw none.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from diptych.choose.adapt import check_folder_is_free
from diptych.choose.data import Pictures, groups_of, near_pairs, readable
from diptych.choose.features import Fingerprints, Progress, vectors_of
from diptych.choose.maps import MapWay, Pairs, Residual, map_way_named, ranks
from diptych.choose.select import fold_of
from diptych.core.arrays import unit_rows
from diptych.core.capabilities import Model
from diptych.core.errors import DiptychError, counted
from diptych.core.sample import Sample
from diptych.data.source import BrokenItem, Source
from diptych.data.sources import open_source
from diptych.inference.adapted import FILE as ADAPTED
from diptych.inference.mapped import MappedModel, Maps
from diptych.inference.several.model import FILE as LABELLED

OUTER, INNER = 5, 4
MOST = 1000  # pictures of a fold among which a caption is looked for
METRICS = ("caption → picture R@1", "caption → picture R@5", "picture → caption R@1")


@dataclass(frozen=True)
class Captioned:
    """Pictures with captions. pictures: their labels are all 0. captions: of each picture, one or more."""

    pictures: Pictures
    captions: list[list[str]]
    groups: np.ndarray
    address: str
    notes: list[str] = field(default_factory=list)


def has_classes(address: str) -> bool:
    """Whether the data at an address is pictures with classes, and not with captions."""
    source = open_source(address)
    return bool(getattr(source, "classes", None))


def captioned(address: str, progress: Progress | None = None) -> Captioned:
    """The pictures and captions at an address, without broken pictures. DiptychError if there are fewer than ten."""
    source: Source = open_source(address)

    def captions(sample: Sample) -> list[str]:
        """The different captions of a sample. Raises ``BrokenItem`` if it has none."""
        if not sample.captions:
            raise BrokenItem(sample.id, "no caption")
        return list(dict.fromkeys(sample.captions))

    held = readable(source, captions)
    labels = np.zeros(len(held.ids), dtype=np.int64)
    pictures = Pictures(held.ids, labels, ("picture",), held.digests, held.read, held.problems)
    if not len(pictures):
        raise DiptychError(f"{address}: no picture with a caption; at least {2 * OUTER} are needed to compare models")
    prints, broken_at = vectors_of(Fingerprints(), pictures, progress)
    usable = [i for i in range(len(pictures)) if i not in broken_at]
    pictures = pictures.without(broken_at)
    groups = groups_of(len(usable), near_pairs(prints[usable]))
    if (different := len(np.unique(groups))) < 2 * OUTER:
        nearly = f", of which {different} differ" if different < len(usable) else ""
        raise DiptychError(
            f"{address}: {counted(len(usable), 'captioned picture')}{nearly}; at least {2 * OUTER} are needed to compare models"
        )
    same = len(usable) - len(np.unique(groups))
    notes = [f"{counted(same, 'picture')} nearly repeat others; near-duplicates stay in one fold"] if same else []
    return Captioned(pictures, [held.values[i] for i in usable], groups, address, notes)


def pairs_of(model: Model, data: Captioned, progress: Progress | None = None) -> Pairs:
    """The model's vectors of pictures and captions. DiptychError if it does not embed both."""
    if lacking := sorted({"embed_image", "embed_text"} - model.capabilities):
        raise DiptychError(f"model '{model.name}' cannot {' and '.join(lacking)}, so its vectors cannot be compared")
    x, _ = vectors_of(model, data.pictures, progress)
    flat = [caption for of_picture in data.captions for caption in of_picture]
    owner = np.repeat(np.arange(len(data.captions)), [len(c) for c in data.captions])
    t = np.asarray(model.embed_text(flat), dtype=np.float32)
    return Pairs(unit_rows(np.asarray(x, dtype=np.float32)), unit_rows(t), owner, data.groups)


def outer_folds(groups: np.ndarray, seed: int = 0, folds: int = OUTER) -> np.ndarray:
    """The outer fold of each picture, int [N]; more folds where one would hold more than ``MOST`` pictures."""
    folds = max(folds, math.ceil(len(groups) / MOST))
    return fold_of(np.zeros(len(groups), dtype=np.int64), groups, folds, seed)


def chosen_settings(way: type[MapWay], pairs: Pairs, seed: int = 0) -> tuple[dict[str, Any], float]:
    """Settings by cross-validation on these pairs: the highest mean of R@1 and R@5 of captions, then the first of the grid; and
    that mean.
    """
    grid = [dict(s) for s in way.grid(pairs)]
    fold = fold_of(np.zeros(len(pairs.x), dtype=np.int64), pairs.groups, INNER, seed)
    totals = np.zeros(len(grid))
    for k in range(fold.max() + 1):
        inside, outside = pairs.rows(np.flatnonzero(fold != k)), pairs.rows(np.flatnonzero(fold == k))
        for i, maps in enumerate(fitted(way, grid, inside)):
            rank, _ = ranks(maps, outside)
            totals[i] += len(rank) * float(((rank < 1).mean() + (rank < 5).mean()) / 2)
    best = int(np.argmax(totals.round(9)))
    return grid[best], float(totals[best] / len(pairs.t))


def fitted(way: type[MapWay], grid: Sequence[Mapping[str, Any]], pairs: Pairs) -> list[Maps]:
    """The maps of several settings; a training that differs only in when it stops runs once."""
    if issubclass(way, Residual) and all(set(s) == {"epochs"} for s in grid):
        return way().path(pairs, [int(s["epochs"]) for s in grid])
    return [way(**s).fit(pairs) for s in grid]


def tested(way_name: str, pairs: Pairs, seed: int = 0) -> dict[str, Any]:
    """What a way achieves on every picture, by nested cross-validation: ``credits``, of each metric one for each caption (or
    picture), whether it is right; the settings of each fold; the pictures among which a caption was looked for; ``outer``, the fold
    of each picture, and ``inner_of_folds``, the score by the inner cross-validation in each, which saw nothing of the fold.
    """
    way = map_way_named(way_name)
    began = time.perf_counter()
    outer = outer_folds(pairs.groups, seed)
    hits = {m: np.zeros(len(pairs.x) if m.startswith("picture") else len(pairs.t)) for m in METRICS}
    settings, sizes, inner = [], [], []
    for k in range(outer.max() + 1):
        inside, held = np.flatnonzero(outer != k), np.flatnonzero(outer == k)
        train, test = pairs.rows(inside), pairs.rows(held)
        setting, score = chosen_settings(way, train, seed)
        to_image, to_text = ranks(way(**setting).fit(train), test)
        captions = np.flatnonzero(outer[pairs.owner] == k)
        hits[METRICS[0]][captions], hits[METRICS[1]][captions] = to_image < 1, to_image < 5
        hits[METRICS[2]][held] = to_text < 1
        settings.append(setting)
        sizes.append(len(held))
        inner.append(score)
    return {
        "credits": {m: "".join(str(int(c)) for c in credit) for m, credit in hits.items()},
        "settings": settings,
        "inner": float(np.mean(inner)),
        "inner_of_folds": inner,
        "outer": outer.tolist(),
        "among": [min(sizes), max(sizes)],
        "seconds": time.perf_counter() - began,
    }


def adapt_to_captions(
    address: str, model: Model, way_name: str, data_address: str, out: Path, *, seed: int = 0,
    settings: Mapping[str, Any] | None = None, overwrite: bool = False, progress: Progress | None = None,
) -> MappedModel:  # fmt: skip
    """Learns a way on all pictures and captions at an address and writes the model to ``out``. DiptychError if the folder holds
    another model, unless ``overwrite``.
    """
    check_folder_is_free(out, overwrite)
    way = map_way_named(way_name)
    data = captioned(data_address, progress)
    pairs = pairs_of(model, data, progress)
    chosen, score = (dict(settings), None) if settings else chosen_settings(way, pairs, seed)
    maps = way(**chosen).fit(pairs)
    rows = sorted(f"{d} {' | '.join(c)}" for d, c in zip(data.pictures.digests, data.captions, strict=True))
    about = {
        "id": f"{way_name}-{hashlib.blake2b(chr(10).join(rows).encode(), digest_size=6).hexdigest()}",
        "way": way_name,
        "settings": chosen,
        "data": data_address,
        "pictures": len(data.captions),
        "captions": len(pairs.t),
        "score": score,
    }
    made = MappedModel(out.name, model, maps, about)
    made.save(out, address)
    for other in (ADAPTED, LABELLED):  # of a model for classes that was replaced
        (out / other).unlink(missing_ok=True)
    return made
