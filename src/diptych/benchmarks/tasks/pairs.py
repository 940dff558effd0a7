"""A true caption against false ones of the same image: ARO (Yuksekgonul et al., arXiv:2210.01936), SugarCrepe (Hsieh et al.,
arXiv:2306.14610), CREPE (Ma et al., arXiv:2212.07796), VL-CheckList (Zhao et al., arXiv:2207.00221), and your own.

Files, told apart by their fields: SugarCrepe's .json (filename, caption, negative_caption), ARO's .json (image_path,
true_caption, false_caption), CREPE's .csv (image_id, caption, hard_negs), VL-CheckList's .json ([image, {POS, NEG}]), or
rows with image, caption and negative or negatives. Without a file: the negatives that the data brings, else its captions
with two words swapped. ``macro``: the mean over the kinds (relations, attributes), so that a rare one counts as much.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diptych.benchmarks.records import Record, Result
from diptych.benchmarks.statistics import function_interval, mean
from diptych.benchmarks.tasks.base import CONTROLS, Items, NotApplicable, readable
from diptych.benchmarks.tasks.choosing import Block, Choosing, best_text
from diptych.benchmarks.tasks.published import Crop, Pictures, Row, content, limited, rows, unique
from diptych.core.errors import DiptychError
from diptych.core.sample import Sample
from diptych.data.negatives import swap_words
from diptych.data.source import Problem, Source

BUILT_IN = 300
NAMES = {
    "truth": ("true_caption", "caption", "text"),
    "false": ("false_caption", "negative_caption", "negative", "hard_negs", "negatives"),
}


@dataclass(frozen=True)
class Pairs(Choosing):
    name: str = "pairs"
    crop: bool = True  # ARO and CREPE show the part of the picture that the caption is about

    def items(self, source: Source) -> Items:
        if not self.file:
            return self._of_samples(source)
        found = limited(self._published(), self.n)
        if not found:
            raise DiptychError(f"{self.file}: no entries")
        unique((b.id for b in found), self.file)
        return Items(found)

    def _published(self) -> Iterator[Block]:
        pictures = Pictures(self.images, self.file)
        if self.file.endswith(".json"):
            whole = content(self.file)
            if isinstance(whole, list) and whole and isinstance(whole[0], list):
                yield from self._checklist(whole, pictures)
                return
        for number, row in enumerate(rows(self.file)):
            yield self._row(row, number, pictures)

    def _row(self, row: Row, number: int, pictures: Pictures) -> Block:
        truth, false = row.text(*NAMES["truth"]), _several(row.need(*NAMES["false"]), row.where)
        image = row.text("filename", "image_path", "image", "image_id", "file_name")
        kinds = {k: str(row[k]) for k in ("relation_name", "attributes", "category", "kind", "split") if row.get(k) is not None}
        if isinstance(row.get("attributes"), list):
            kinds["attributes"] = " ".join(map(str, row["attributes"]))
        name = f"{row.get('id', number)}"
        return block(name, image, self._shown(row, pictures.path(image, row.where)), truth, false, kinds)

    def _shown(self, row: Row, path: str) -> str | Crop:
        for names in (("bbox_x", "bbox_y", "bbox_w", "bbox_h"), ("x", "y", "width", "height")):
            if self.crop and all(row.get(n) not in (None, "") for n in names):
                try:
                    x, y, width, height = (round(float(row[n])) for n in names)
                except (TypeError, ValueError):
                    raise DiptychError(f"{row.where}: fields {', '.join(names)}: expected numbers") from None
                return Crop(path, (x, y, width, height))
        return path

    def _checklist(self, whole: list[Any], pictures: Pictures) -> Iterator[Block]:
        for number, entry in enumerate(whole):
            where = f"{self.file}, entry {number}"
            try:
                image, sides = entry
                truths, false = [str(t) for t in sides["POS"]], [str(t) for t in sides["NEG"]]
            except (TypeError, ValueError, KeyError) as error:
                raise DiptychError(f'{where}: expected [image, {{"POS": […], "NEG": […]}}] ({error!r})') from None
            for i, (t, f) in enumerate(zip(truths, false, strict=False)):
                yield block(f"{number}.{i}", str(image), pictures.path(str(image), where), t, [f], {})

    def _of_samples(self, source: Source) -> Items:
        items: list[Block] = []
        problems: list[Problem] = []
        for sample in readable(source, problems):
            made = self._of_sample(sample)
            items += [made] if made is not None else []
            if len(items) == (self.n or BUILT_IN):
                break
        if len(items) < 2:
            raise NotApplicable("the data has no captions with negatives, nor any in which two words could be swapped")
        return Items(items, problems)

    def _of_sample(self, sample: Sample) -> Block | None:
        if sample.image is None or not sample.captions:
            return None
        for caption, negative in zip(sample.captions, sample.negatives, strict=False):
            if negative:
                return block(sample.id, sample.id, sample.image, caption, [negative], {})
        swapped = swap_words(sample.captions[0], random.Random(f"{self.seed} {sample.id}"))
        return block(sample.id, sample.id, sample.image, sample.captions[0], [swapped], {}) if swapped else None

    def credit(self, scores: np.ndarray, fits: np.ndarray) -> dict[str, float]:
        return {"accuracy": best_text(scores, fits)}

    def summarise(self, records: list[Record]) -> list[Result]:
        records = sorted((self.judge(r) for r in records), key=lambda r: str(r["item"]))
        found = super().summarise(records)
        kinds = [next(iter((r.get("slices") or {}).values()), "") for r in records]
        return [*found, self._macro(found[0], records, kinds)] if len(set(kinds)) > 1 else found

    def _macro(self, accuracy: Result, records: list[Record], kinds: list[str]) -> Result:
        _, which = np.unique(kinds, return_inverse=True)

        def over_kinds(look: str) -> float:
            values = np.array([r[look]["accuracy"] for r in records])
            return mean([mean(values[which == k]) for k in range(which.max() + 1)])

        credit = np.array([r["correct"]["accuracy"] for r in records])

        def resampled(index: np.ndarray) -> float:
            sizes, sums = np.bincount(which[index]), np.bincount(which[index], credit[index])
            return float((sums[sizes > 0] / sizes[sizes > 0]).mean())

        at = function_interval(resampled, [r["cluster"] for r in records], share=True, resamples=500)
        controls = {c: over_kinds(c) for c in CONTROLS if c in accuracy.controls}
        value, chance = over_kinds("correct"), over_kinds("chance")
        return replace(accuracy, metric="macro", value=value, low=at.low, high=at.high, chance=chance, controls=controls, slices=[])


def block(name: str, cluster: str, image: Any, truth: str, false: list[str], slices: dict[str, str]) -> Block:
    fits = np.zeros((1, 1 + len(false)), dtype=bool)
    fits[0, 0] = True
    return Block(name, cluster, [image], [truth, *false], fits, slices)


def _several(value: Any, where: str) -> list[str]:
    """One false caption or several; CREPE writes a list as text."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            raise DiptychError(f"{where}: field 'hard_negs': not a list: {value[:60]}") from None
    found = [str(v).strip() for v in (value if isinstance(value, list) else [value]) if str(v).strip()]
    if not found:
        raise DiptychError(f"{where}: no false caption")
    return found
