"""A true caption against false ones of the same image: ARO (Yuksekgonul et al., arXiv:2210.01936), SugarCrepe (Hsieh et al.,
arXiv:2306.14610), CREPE (Ma et al., arXiv:2212.07796), VL-CheckList (Zhao et al., arXiv:2207.00221), and your own files.

Files, recognised by their fields: SugarCrepe's .json (filename, caption, negative_caption), ARO's .json (image_path,
true_caption, false_caption), CREPE's .csv (image_id, caption, hard_negs), VL-CheckList's .json ([image, {POS, NEG}]), or
rows with image, caption and negative or negatives. Without a file: the negatives that the data has, else its captions
with two words swapped. ``macro``: the mean over the kinds (relations, attributes), so that a rare one counts as much.
Controls: the shortest and the longest caption by words, since "the shorter one is true" solves parts of SugarCrepe.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from diptych.benchmarks.base import Items, NotApplicable, by_item, readable
from diptych.benchmarks.inputs import kind_of, read_json, read_records, read_rows, table_of
from diptych.benchmarks.matching import winoground
from diptych.benchmarks.matching.blocks import Block, MatchingTask, word_counts
from diptych.benchmarks.metrics.ranking import lowest_if_not_finite
from diptych.benchmarks.pictures import Crop, Pictures
from diptych.benchmarks.records import Record, Result
from diptych.benchmarks.results import CONTROLS, class_sums, credit_slices, macro, mean_of_classes, of_credits
from diptych.benchmarks.statistics import mean
from diptych.benchmarks.tables import Row, Table, unique
from diptych.core.errors import DiptychError, counted
from diptych.core.sample import Sample
from diptych.data.negatives import swap_words
from diptych.data.source import Problem, Source

BUILT_IN = 300  # pairs from a source without end
TRUE = ("true_caption", "caption", "text")
FALSE = ("false_caption", "negative_caption", "negative", "hard_negs", "negatives")


def positive_credit(positive: np.ndarray, negatives: np.ndarray, sizes: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The credit of a true text against n false ones, float [N]: 1/m in an m-way tie at the top; and whether the top was tied,
    bool [N].

    ``positive`` [N], ``negatives`` [N, n] of which row i uses the first ``sizes[i]`` (None: all). Not the argmax in a fixed order,
    by which equal scores would win. A score that is not finite counts as the lowest.
    """
    positive, negatives = lowest_if_not_finite(positive), lowest_if_not_finite(negatives)
    used = np.ones(negatives.shape, dtype=bool) if sizes is None else np.arange(negatives.shape[1]) < np.asarray(sizes)[:, None]
    best = np.maximum(positive, np.where(used, negatives, -np.inf).max(1))
    top = ((negatives == best[:, None]) & used).sum(1) + (positive == best)
    return np.where(positive == best, 1 / top, 0.0), top > 1


@dataclass(frozen=True)
class Pairs(MatchingTask):
    """A right and a wrong caption for each image (SugarCrepe, ARO)."""

    name: str = "pairs"
    crop: bool = True  # ARO and CREPE show the part of the image that the caption describes

    def items(self, source: Source) -> Items:
        """The blocks."""
        if not self.file:
            return self._of_samples(source)
        blocks = list(islice(self._of_file(), self.n or None))
        if not blocks:
            raise DiptychError(f"{self.file}: no rows")
        unique((b.id for b in blocks), self.file)
        return Items(blocks)

    def _of_file(self) -> Iterator[Block]:
        pictures, path = Pictures(self.images, self.file), Path(self.file)
        if path.suffix.lower() == ".json" and kind_of(path) == "document":
            document = read_json(path)
            if isinstance(document, list) and document and isinstance(document[0], list):
                yield from self._checklist(document, pictures)
                return
            rows = table_of(document, path).records()
        else:
            rows = read_records(path)
        for number, row in enumerate(rows):
            yield self._block(row, number, pictures)

    def _block(self, row: Row, number: int, pictures: Pictures) -> Block:
        true, false = row.text(*TRUE), _texts(row.need(*FALSE), row.where)
        image = row.text("filename", "image_path", "image", "image_id", "file_name")
        shown = self._image(row, pictures.path(image, row.where))
        return block(f"{row.get('id', number)}", image, shown, true, false, row.slices())

    def _image(self, row: Row, path: str) -> str | Crop:
        for names in (("bbox_x", "bbox_y", "bbox_w", "bbox_h"), ("x", "y", "width", "height")):
            if self.crop and all(row.get(n) not in (None, "") for n in names):
                try:
                    x, y, width, height = (round(float(row[n])) for n in names)
                except (TypeError, ValueError):
                    raise DiptychError(f"{row.where}: fields {', '.join(names)}: expected numbers") from None
                return Crop(path, (x, y, width, height))
        return path

    def _checklist(self, document: list[Any], pictures: Pictures) -> Iterator[Block]:
        for number, entry in enumerate(document):
            where = f"{self.file}, [{number}]"
            try:
                image, sides = entry
                true, false = [str(t) for t in sides["POS"]], [str(t) for t in sides["NEG"]]
            except (TypeError, ValueError, KeyError) as error:
                raise DiptychError(f'{where}: expected [image, {{"POS": […], "NEG": […]}}] ({error!r})') from None
            for i, (t, f) in enumerate(zip(true, false, strict=False)):
                yield block(f"{number}.{i}", str(image), pictures.path(str(image), where), t, [f], {})

    def _of_samples(self, source: Source) -> Items:
        blocks: list[Block] = []
        problems: list[Problem] = []
        for sample in readable(source, problems):
            made = self._of_sample(sample)
            blocks += [made] if made is not None else []
            if len(blocks) == (self.n or BUILT_IN):
                break
        if len(blocks) < 2:
            raise NotApplicable("the data has no captions with negatives, and none in which two words could be swapped")
        return Items(blocks, problems)

    def _of_sample(self, sample: Sample) -> Block | None:
        if sample.image is None or not sample.captions:
            return None
        for caption, negative in zip(sample.captions, sample.negatives, strict=False):
            if negative:
                return block(sample.id, sample.id, sample.image, caption, [negative], {})
        swapped = swap_words(sample.captions[0], random.Random(f"{self.seed} {sample.id}"))
        return block(sample.id, sample.id, sample.image, sample.captions[0], [swapped], {}) if swapped else None

    def credit(self, scores: np.ndarray, fits: np.ndarray, to_image: np.ndarray | None = None) -> dict[str, float]:
        """{metric: credit in [0, 1]} of scores [images, texts]."""
        return {"accuracy": float(positive_credit(scores[:, 0], scores[:, 1:])[0][0])}

    def summarise(self, records: list[Record]) -> list[Result]:
        """Accuracy; with two kinds of pairs or more also ``macro``, the mean of the kinds' accuracies, with its controls."""
        records = by_item(self.with_credits(r) for r in records)
        results = super().summarise(records)
        kinds = [next(iter((r.get("slices") or {}).values()), "") for r in records]
        if len(set(kinds)) < 2:
            return results
        which = np.unique(kinds, return_inverse=True)[1]

        def over_kinds(condition: str) -> float:
            """The mean over kinds of one control's accuracy."""
            return float(mean_of_classes(class_sums(np.array([r[condition]["accuracy"] for r in records]), which).sum(0)))

        credits = np.array([r["correct"]["accuracy"] for r in records])
        at = macro(self.name, "macro", credits, kinds, [r["cluster"] for r in records])
        controls = {c: over_kinds(c) for c in CONTROLS if c in results[0].controls}
        fields: dict[str, Any] = {
            "value": at.value,
            "low": at.low,
            "high": at.high,
            "chance": over_kinds("chance"),
            "controls": controls,
        }
        return [*results, replace(results[0], metric="macro", slices=[], **fields)]


def block(name: str, cluster: str, image: Any, true: str, false: list[str], slices: dict[str, str]) -> Block:
    """One image with its true caption first."""
    fits = np.zeros((1, 1 + len(false)), dtype=bool)
    fits[0, 0] = True
    return Block(name, cluster, [image], [true, *false], fits, slices)


def _texts(value: Any, where: str) -> list[str]:
    """One false caption or several; CREPE writes a list as text."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            raise DiptychError(f"{where}: field 'hard_negs': not a list: {value[:60]}") from None
    texts = [str(v).strip() for v in (value if isinstance(value, list) else [value]) if str(v).strip()]
    if not texts:
        raise DiptychError(f"{where}: no false caption")
    return texts


# --- scores in files: diptych metrics pairs ---


def score_file(path: Path) -> list[Result]:
    """Results of rows with ``positive`` and ``negative`` (or ``negatives``), or with Winoground's four scores."""
    table = read_rows(path)
    ids = table.unique("id", aliases=("item",)) if table.has("id") or table.has("item") else [str(i) for i in range(len(table))]
    if table.has(winoground.SCORES[0]):
        return winoground.score_table(table, ids)
    images = table.column("image", "id", aliases=("image_id", "filename", "cluster"), default=None)
    clusters = [name if image is None else image for image, name in zip(images, ids, strict=True)]
    positive = np.array(table.column("positive", "score"))
    negatives, sizes = _negatives(table)
    credits, tied = positive_credit(positive, negatives, sizes)
    unused = negatives.size - int(sizes.sum())
    chance, columns = 1 / (1 + sizes), table.slices()
    counts: dict[str, Any] = {
        "ties": int(tied.sum()),
        "nans": int((~np.isfinite(positive)).sum() + (~np.isfinite(negatives)).sum() - unused),
    }
    accuracy = of_credits(
        "pairs", "accuracy", credits, clusters, chance=mean(chance), controls=_length_controls(table, sizes), **counts
    )
    results = [replace(accuracy, slices=credit_slices(credits, clusters, columns))]
    for name, values in columns.items():
        which = np.unique([str(v) for v in values], return_inverse=True)[1]
        if which.any():
            at_chance = float(mean_of_classes(class_sums(chance, which).sum(0)))
            results.append(macro("pairs", f"accuracy, macro over {name}", credits, values, clusters, chance=at_chance, **counts))
    return results


def _negatives(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Scores [N, n], NaN where a row has fewer, and how many each row has, int [N]."""
    if not table.has("negatives"):
        return np.array(table.column("negative", "score"))[:, None], np.ones(len(table), dtype=np.int64)
    lists = table.column("negatives", "scores")
    empty = [i for i, row in enumerate(lists) if not row]
    if empty:
        raise DiptychError(f"{table.where(empty[0])}: 'negatives' is empty")
    return _padded(lists)


def _padded(lists: Sequence[Sequence[float] | np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    sizes = np.array([len(row) for row in lists])
    padded = np.full((len(lists), sizes.max()), np.nan)
    padded[np.arange(sizes.max()) < sizes[:, None]] = np.concatenate([np.asarray(row, dtype=np.float64) for row in lists])
    return padded, sizes


def _length_controls(table: Table, sizes: np.ndarray) -> dict[str, float | None]:
    """The accuracy of "the shorter caption is true" and of "the longer one is", in words, where the file has the captions."""
    if not table.has("caption"):
        return {}
    own = word_counts(table.column("caption", "text"))
    if table.has("negative_captions"):
        others = table.column("negative_captions", "texts")
    else:
        others = [[text] for text in table.column("negative_caption", "text")]
    for i, texts in enumerate(others):
        if len(texts) != sizes[i]:
            raise DiptychError(
                f"{table.where(i)}: {counted(len(texts), 'negative caption')} for {counted(sizes[i], 'negative score')}"
            )
    lengths, _ = _padded([word_counts(texts) for texts in others])
    return {
        "shortest": mean(positive_credit(-own, -lengths, sizes)[0]),
        "longest": mean(positive_credit(own, lengths, sizes)[0]),
    }
