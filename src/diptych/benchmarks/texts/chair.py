"""CHAIR: objects that captions name and images do not show (Rohrbach et al., arXiv:1809.02156), from any data with labels.

A vocabulary maps words and phrases, in the singular, to objects. The truth is the labels and the objects that the reference
captions name. ``chair_i``: share of the mentions that are hallucinated; ``chair_s``: share of the captions with one. Both fall when
captions get shorter, so recall and length (words) are reported with them. Shuffled: the captions against the truth of another
image. ``diptych metrics chair``: the same from COCO results and COCO instances; a null caption counts as an empty one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from importlib import resources
from pathlib import Path

import numpy as np

from diptych.benchmarks.base import Items, by_item
from diptych.benchmarks.controls import derangement
from diptych.benchmarks.inputs import read_rows
from diptych.benchmarks.labels import instances, labelled
from diptych.benchmarks.records import Record, Result
from diptych.benchmarks.results import of_sums
from diptych.benchmarks.tables import match
from diptych.benchmarks.texts.captions import Captions, captions_in, read_references
from diptych.core.errors import DiptychError, nearest
from diptych.core.sample import Sample
from diptych.data.source import Source

METRICS = {"chair_i": False, "chair_s": False, "recall": True, "length": True}  # is higher better?

# --- the formula ---

Vocabulary = dict[tuple[str, ...], str | None]  # None: a phrase that is not an object ("train track")

_IRREGULAR = {
    "men": "man", "women": "woman", "children": "child", "mice": "mouse", "geese": "goose", "people": "person",
    "oxen": "ox", "policemen": "policeman", "firemen": "fireman", "fishermen": "fisherman", "gentlemen": "gentleman",
    "businessmen": "businessman", "salesmen": "salesman",
}  # fmt: skip
_WORD = re.compile(r"\w+(?:'\w+)*")
COLUMNS = ("captions", "mentions", "hallucinated", "with_hallucination", "true", "recalled", "words")


def vocabulary(lines: Iterable[str]) -> Vocabulary:
    """From lines ``object, synonym, synonym …``, the format of the published synonym lists; ``- phrase, …``: phrases that are not
    objects.

    Raises ValueError, naming the line from 1, if a word means two objects.
    """
    result: Vocabulary = {}
    for number, line in enumerate(lines, 1):
        words = [" ".join(w.split()).lower() for w in line.strip().lstrip("-").split(",") if w.strip()]
        target = None if line.strip().startswith("-") else (words[0] if words else None)
        for word in words:
            key = _words(word)
            if result.get(key, target) != target:
                raise ValueError(f"line {number}: '{word}' means both '{result[key]}' and '{target}'")
            result[key] = target
    for name in {v for v in result.values() if v is not None}:
        result.setdefault(_words(name), name)
    return result


@cache
def coco_vocabulary() -> Vocabulary:
    """Our list of common words for the 80 objects of COCO (arXiv:1405.0312): coco_objects.txt."""
    return vocabulary(resources.files("diptych.benchmarks.texts").joinpath("coco_objects.txt").read_text("utf-8").splitlines())


def _words(text: str) -> tuple[str, ...]:
    return tuple(w.removesuffix("'s") for w in _WORD.findall(text.lower().replace("’", "'").replace("-", " ")))


def _singulars(word: str) -> list[str]:
    """The word and its possible singulars, the likeliest first; the vocabulary decides."""
    singulars = [word]
    if word in _IRREGULAR:
        singulars.append(_IRREGULAR[word])
    if word.endswith("s"):
        singulars.append(word[:-1])
        if word.endswith("es"):
            singulars.append(word[:-2])
        if word.endswith("ies"):
            singulars.append(word[:-3] + "y")
        if word.endswith("ves"):
            singulars += [word[:-3] + "f", word[:-3] + "fe"]
    return singulars


def objects_in(text: str, words: Vocabulary) -> list[str]:
    """The objects that a text mentions, in order and with repetitions; the longest phrase wins ("hot dog" is not a dog)."""
    tokens = _words(text)
    longest = max(map(len, words), default=0)
    objects, i = [], 0
    while i < len(tokens):
        for length in range(min(longest, len(tokens) - i), 0, -1):
            *head, last = tokens[i : i + length]  # only the last word of a phrase may be a plural
            key = next((k for w in _singulars(last) if (k := (*head, w)) in words), None)
            if key is not None:
                if words[key] is not None:
                    objects.append(str(words[key]))
                i += length
                break
        else:
            i += 1
    return objects


def chair_counts(mentioned: Sequence[Sequence[str]], truth: Sequence[Collection[str]], texts: Sequence[str]) -> np.ndarray:
    """Per caption the numbers of ``COLUMNS``, int [N, 7]; every metric is a function of the column sums.

    ``mentioned``: ``objects_in`` of each caption; ``truth``: the objects of its image, from labels and reference captions.
    """
    rows = []
    for names, true, text in zip(mentioned, truth, texts, strict=True):
        false = sum(name not in true for name in names)
        rows.append([1, len(names), false, int(false > 0), len(set(true)), len(set(names) & set(true)), len(_WORD.findall(text))])
    return np.array(rows, dtype=np.int64).reshape(-1, len(COLUMNS))


def chair_of_counts(sums: np.ndarray) -> dict[str, np.ndarray]:
    """{metric: float [...]} of column sums [..., 7]: chair_i, chair_s, recall (shares; 0/0 is 0) and length (words per caption)."""
    captions, mentions, false, with_false, true, recalled, words = np.moveaxis(np.asarray(sums, dtype=np.float64), -1, 0)
    return {
        "chair_i": false / np.maximum(mentions, 1),
        "chair_s": with_false / np.maximum(captions, 1),
        "recall": recalled / np.maximum(true, 1),
        "length": words / np.maximum(captions, 1),
    }


def true_objects(labels: Iterable[str], words: Vocabulary) -> set[str]:
    """The vocabulary's objects for the labels of an image, in any letter case; labels that it does not have are kept."""
    return {words.get(_words(label)) or label for label in labels}


def read_vocabulary(path: str | Path) -> Vocabulary:
    """A file of synonyms. Raises DiptychError if there are none, or if a word means two objects."""
    from diptych.data.storage import files

    if not files.exists(str(path)):
        raise DiptychError(f"{path}: no such file")
    try:
        words = vocabulary(files.read_text(str(path)).split("\n"))
    except ValueError as error:
        raise DiptychError(f"{path}, {error}") from None
    if not words:
        raise DiptychError(f"{path}: no synonyms; expected lines such as 'person, man, woman'")
    return words


def _metric(name: str, sums: np.ndarray) -> np.ndarray:
    return chair_of_counts(sums)[name]


Texts = tuple[Sequence[Sequence[str]], Sequence[str]]  # the objects that each caption mentions, and the captions


def chair_results(
    task: str, own: Texts, truth: Sequence[Collection[str]], clusters: Sequence[str], seed: int = 0, **controls: Texts
) -> list[Result]:
    """The four metrics of captions sorted by item, with the control shuffled. ``controls``: other captions for the same items."""
    counts = {name: chair_counts(texts[0], truth, texts[1]) for name, texts in controls.items()}
    order = derangement(len(truth), seed=seed)
    if order is not None:
        counts["shuffled"] = chair_counts(own[0], [truth[i] for i in order], own[1])
    sums = {name: chair_of_counts(c.sum(0)) for name, c in counts.items()}
    items = chair_counts(own[0], truth, own[1])
    return [
        of_sums(
            task,
            metric,
            items,
            partial(_metric, metric),
            clusters,
            bounded=metric != "length",
            higher_is_better=higher,
            controls={name: float(values[metric]) for name, values in sums.items()},
        )
        for metric, higher in METRICS.items()
    ]


# --- the task ---


@dataclass(frozen=True)
class Chair(Captions):
    """CHAIR: objects in captions that the image does not show (Rohrbach et al. 2018)."""

    name: str = "chair"
    labels: str = ""  # a COCO instances file, for data that brings captions only
    words: str = ""  # lines "object, synonym, …"; "": our list for COCO's objects if all labels are such, else the labels

    def items(self, source: Source) -> Items:
        """Up to n samples with known objects, and in each the list of all objects that any sample or the source's concepts name: a
        caption can mention each of these.
        """
        known = labelled(source, self.n, self.labels)
        objects = {name for _, names in known for name in names}
        if hasattr(source, "concepts"):
            objects |= set(source.concepts())
        every = tuple(sorted(objects))
        return Items([_with_objects(sample, names, every) for sample, names in known], known.problems)

    def record(self, item: Sample, generated: str, blind: str) -> Record:
        """What is kept of an item."""
        words = _vocabulary(self.words, item.extra["vocabulary"])
        truth = true_objects(item.extra["labels"], words).union(*(objects_in(caption, words) for caption in item.captions))
        return {
            **super().record(item, generated, blind),
            "truth": sorted(truth),
            "mentioned": objects_in(generated, words),
            "mentioned_blind": objects_in(blind, words),
        }

    def summarise(self, records: list[Record]) -> list[Result]:
        """``chair_i``, ``chair_s``, ``recall`` and ``length``, with the controls blind and shuffled."""
        records = by_item(records)
        own, blind = (
            ([r[f"mentioned{condition}"] for r in records], [r[f"generated{condition}"] for r in records])
            for condition in ("", "_blind")
        )
        truth = [set(r["truth"]) for r in records]
        return chair_results(self.name, own, truth, [r["cluster"] for r in records], self.seed, blind=blind)

    def credits(self, records: list[Record]) -> dict[str, dict[str, float]]:
        """What a paired test compares: the metrics that are means over items."""
        counts = chair_counts(
            [r["mentioned"] for r in records], [set(r["truth"]) for r in records], [r["generated"] for r in records]
        )
        return {"chair_s": {r["item"]: float(row[3]) for r, row in zip(records, counts, strict=True)}}


def _with_objects(sample: Sample, labels: list[str], known: tuple[str, ...]) -> Sample:
    return sample.with_(extra={**sample.extra, "labels": labels, "vocabulary": known})


@lru_cache(maxsize=4)
def _vocabulary(file: str, labels: tuple[str, ...]) -> Vocabulary:
    if file:
        return read_vocabulary(file)
    coco = coco_vocabulary()
    return coco if {label.lower() for label in labels} <= {v for v in coco.values() if v} else vocabulary(labels)


# --- captions in files: diptych metrics chair ---


def score_files(captions: Path, labels: Path, references: Path | None = None, synonyms: Path | None = None) -> list[Result]:
    """CHAIR of a COCO results file; the truth: labels of a COCO instances file and objects of the reference captions."""
    table = read_rows(captions, "annotations")
    ids, generated = table.unique("image_id"), captions_in(table)
    words = coco_vocabulary() if synonyms is None else read_vocabulary(synonyms)
    known = instances(labels)
    unknown = sorted({name for names in known.values() for name in names if words.get(_words(name)) is None})
    if unknown:
        valid = [name for name in words.values() if name is not None]
        raise DiptychError(
            f"{labels}: no synonyms are known for the category '{unknown[0]}'{nearest(unknown[0], valid)}; give --synonyms FILE"
        )
    match([i for i in ids if i in known], ids, labels, table)
    truth = {i: true_objects(known[i], words) for i in generated}
    if references is not None:
        texts = read_references(references)
        match([i for i in ids if i in texts], ids, references, table)
        for i in generated:
            truth[i] |= {name for text in texts[i] for name in objects_in(text, words)}
    own = [objects_in(text, words) for text in generated.values()], list(generated.values())
    results = chair_results("chair", own, list(truth.values()), list(generated))
    return [replace(r, controls={}) if r.metric == "length" else r for r in results]
