"""Queries: a picture, a phrase, and where it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diptych.benchmarks.base import Items, NotApplicable, readable
from diptych.core.capabilities import Image
from diptych.core.sample import Box, Region, Sample
from diptych.data.hashes.hamming import nearest_within
from diptych.data.hashes.perceptual import phashes
from diptych.data.regions.placement import usable
from diptych.data.source import Problem, Source

SMALL = 1 / 50  # of the picture's area: a box below it is of a small object
NEAR = 6  # differing bits of 64 up to which two pictures count as near-duplicates


@dataclass
class Query:
    """One phrase for a picture. boxes, masks: of everything that it may mean, one or more; all: the boxes of all regions of the
    picture, from which the controls choose.
    """

    id: str
    cluster: str
    image: Image
    phrase: str
    boxes: list[Box]
    masks: list[np.ndarray | None]
    all: list[Box]
    negatives: tuple[str, ...] = ()
    slices: dict[str, str] = field(default_factory=dict)


def good_regions(sample: Sample, problems: list[Problem]) -> list[tuple[int, Region]]:
    """The regions of a sample with a usable box, cut to the picture, and their places; others are problems."""
    assert sample.image is not None
    height, width = sample.image.shape[:2]
    found = []
    for place, region in enumerate(sample.fields.get("regions") or ()):
        try:
            found.append((place, region._replace(box=usable(region.box, height, width))))
        except ValueError as error:
            problems.append(Problem(f"{sample.id}, region {place + 1}", str(error)))
    return found


def with_regions(source: Source, problems: list[Problem]) -> Iterator[tuple[Sample, list[tuple[int, Region]]]]:
    """The samples of a source that have a picture and usable regions."""
    if "regions" not in getattr(source, "fields", ("regions",)):
        raise NotApplicable("the source has no regions (scenes:regions, coco: with instances, refcoco:, regions: … have)")
    for sample in readable(source, problems):
        if sample.image is not None and (regions := good_regions(sample, problems)):
            yield sample, regions


def queries(source: Source, n: int, *, single: bool) -> Items:
    """The first n queries of a source. single: phrases that several regions of a picture share are left out; else they are one
    query with several boxes. Raises NotApplicable if there is none.
    """
    problems: list[Problem] = []
    found: list[Query] = []
    for sample, regions in with_regions(source, problems):
        groups: dict[str, list[tuple[int, Region]]] = {}
        for place, region in regions:
            groups.setdefault(region.phrase, []).append((place, region))
        everything = [region.box for _, region in regions]
        for phrase, same in groups.items():
            if single and len({region.box for _, region in same}) > 1:
                problems.append(Problem(f"{sample.id}: {phrase}", f"refers to {len(same)} regions; such phrases are left out"))
                continue
            found.append(_query(sample, phrase, same, everything))
            if len(found) == n:
                return Items(found, problems)
    if not found:
        raise NotApplicable("the source has no regions with a phrase")
    return Items(found, problems)


def _query(sample: Sample, phrase: str, same: list[tuple[int, Region]], everything: list[Box]) -> Query:
    assert sample.image is not None
    height, width = sample.image.shape[:2]
    first = same[0][1]
    size = (first.box[2] - first.box[0]) * (first.box[3] - first.box[1])
    facts = dict(enumerate(sample.extra.get("refer") or ())).get(same[0][0], {})
    known = {name: str(facts[name]) for name in ("kind", "distractors") if name in facts}
    slices = {"size": "small" if size < SMALL * height * width else "large", **known}
    kinds = sample.extra.get("kinds") or sample.extra.get("categories")
    if isinstance(kinds, list) and same[0][0] < len(kinds):
        slices["kind"] = str(kinds[same[0][0]])
    return Query(
        f"{sample.id}#{same[0][0]}",
        sample.id,
        sample.image,
        phrase,
        [region.box for _, region in same],
        [region.mask for _, region in same],
        everything,
        first.negatives,
        slices,
    )


def mark_leaks(items: Iterable[Any], train: str, limit: int) -> list[Any]:
    """Queries with the slice ``leaked``: "yes" where the picture is a near-duplicate of one of the first ``limit`` training
    pictures (perceptual hashes within ``NEAR`` bits).

    train: the address of the training data; "": nothing is checked.
    """
    from diptych.data.sources import open_source

    found = list(items)
    if not train or not found:
        return found
    hashes: list[np.ndarray] = []
    chunk: list[Image] = []
    source = open_source(train)
    for sample in readable(source, [], range(min(len(source), limit))):
        if sample.image is not None:
            chunk.append(sample.image)
        if len(chunk) == 256:
            hashes.append(phashes(chunk))
            chunk = []
    hashes.append(phashes(chunk))
    pictures = {q.cluster: q.image for q in found}
    near, _ = nearest_within(phashes(list(pictures.values())), np.concatenate(hashes), NEAR)
    leaked = {name for name, place in zip(pictures, near.tolist(), strict=True) if place >= 0}
    for q in found:
        q.slices["leaked"] = "yes" if q.cluster in leaked else "no"
    return found


def leak_notes(records: Iterable[dict[str, Any]], train: str) -> list[str]:
    """What the check for leaks found, in words."""
    of = {r["cluster"]: (r.get("slices") or {}).get("leaked") for r in records}
    checked = [v for v in of.values() if v is not None]
    if not checked:
        return []
    n = checked.count("yes")
    if not n:
        return [f"none of {len(checked)} pictures is a near-duplicate of one in {train}"]
    return [
        f"{n} of {len(checked)} pictures are near-duplicates of pictures in {train} (pictures of RefCOCO are in COCO's training "
        "part); the slice leaked=no is without them"
    ]
