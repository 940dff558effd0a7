"""Captioning, scored against reference captions as by the COCO server (Chen et al., arXiv:1504.00325; formulas:
metrics/captions.py).

``captions``: one record per item with the text generated from the image and from a grey one of its size. Shuffled: scored against
the references of another item. CIDEr-D's interval keeps the document frequencies of all references. Texts are greedy unless the
settings say otherwise: ``captions?beams=4``, ``captions?temperature=0.8&top_p=0.9``; the seed is the task's.
``captions?shots=4``: four training images with a caption each are shown first, drawn by the seed and the same for every item and
control; ``&train=ADDRESS`` draws them from other data. ``diptych metrics captions``: the same from COCO results; a null caption
counts as an empty one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from diptych.benchmarks.base import Items, Progress, at_least_two, batch_for, by_item, failures, retrieval_items
from diptych.benchmarks.controls import blank, derangement
from diptych.benchmarks.inputs import read_rows
from diptych.benchmarks.metrics.captions import Corpus, Hypotheses, References, bleu_of_sums, caption_scores
from diptych.benchmarks.records import Record, Records, Result, write_jsonl
from diptych.benchmarks.results import of_credits, of_sums
from diptych.benchmarks.shots import check_examples, examples_argument
from diptych.benchmarks.tables import Table, match
from diptych.core.capabilities import Example, Image, Model, Unanswered
from diptych.core.errors import DiptychError
from diptych.core.sample import Sample
from diptych.data.source import Source

METRICS = ("cider", "bleu4", "rouge_l")  # of the task
DECODING = ("beams", "length_penalty", "temperature", "top_k", "top_p", "repetition_penalty")


def caption_results(
    task: str, references: References, generated: Hypotheses, clusters: Sequence[str], seed: int = 0, **controls: Hypotheses
) -> list[Result]:
    """BLEU-1..4, ROUGE-L and CIDEr-D with the control shuffled, each text against the references of another item.

    Items come in the order of ``generated``, which must be sorted. ``controls``: other texts for the same items.
    """
    keys = list(generated)
    scored = {name: caption_scores(references, texts) for name, texts in controls.items()}
    order = derangement(len(keys), seed=seed)
    if order is not None:
        scored["shuffled"] = caption_scores({k: references[keys[i]] for k, i in zip(keys, order, strict=True)}, generated)

    def more(metric: str) -> dict[str, Any]:
        """The metric under every control."""
        return {"controls": {name: values[metric] for name, values in scored.items()}}

    corpus = Corpus(references, generated)
    counts = corpus.bleu_counts()
    return [
        *(of_sums(task, f"bleu{n}", counts, partial(_bleu, n), clusters, **more(f"bleu{n}")) for n in (1, 2, 3, 4)),
        of_credits(task, "rouge_l", corpus.rouge_l(), clusters, **more("rouge_l")),
        of_credits(task, "cider", corpus.cider_d(), clusters, bounded=False, **more("cider")),
    ]


def _bleu(n: int, sums: np.ndarray) -> np.ndarray:
    return bleu_of_sums(sums)[..., n - 1]


@dataclass(frozen=True)
class Captions:
    """Generated captions against references: CIDEr-D, BLEU, ROUGE-L."""

    name: str = "captions"
    needs: tuple[str, ...] = ("generate",)
    n: int = 64
    prompt: str = ""
    max_tokens: int = 32
    batch: int = 32
    seed: int = 0
    beams: int = 1
    length_penalty: float = 1.0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    shots: int = 0
    train: str = ""

    def __post_init__(self) -> None:
        if self.decoding:
            from diptych.inference.generate import decoding_of

            decoding_of(max_tokens=self.max_tokens, **self.decoding)  # an invalid setting is refused before anything is loaded
            object.__setattr__(self, "needs", ("generate", "decoding"))

    @property
    def decoding(self) -> dict[str, Any]:
        """The settings that differ from greedy decoding, by the names that ``generate`` knows."""
        given = {
            f.name: getattr(self, f.name) for f in fields(Captions) if f.name in DECODING and getattr(self, f.name) != f.default
        }
        return {**given, "seed": self.seed} if given else {}

    def items(self, source: Source) -> Items:
        """Up to n samples with an image and a caption. Raises NotApplicable if there are fewer than two."""
        return at_least_two(retrieval_items(source, self.n))

    def examples(self, source: Source, sample: Sample) -> list[Example]:
        """The possible examples of a training sample."""
        return [] if sample.image is None else [Example(sample.image, caption) for caption in sample.captions]

    def run(self, model: Model, items: list[Sample], records: Records, progress: Progress | None = None) -> None:
        """One record per image with the generated text and the text generated from a grey image of its size. With a folder, the
        texts are also saved as ``captions.jsonl``.
        """
        check_examples(model, self.shots)
        examples = getattr(items, "examples", [])
        more = {"examples": [e.text for e in examples]} if examples else {}
        blind: dict[tuple[int, ...], str] = {}  # the same image gives the same text: one grey image of each size is enough
        batch = batch_for(model, self.batch)
        for start in range(0, len(items), batch):
            part = [item for item in items[start : start + batch] if item.id not in records]
            images = [item.image for item in part if item.image is not None]
            grey: dict[tuple[int, ...], Image] = {i.shape: blank(i) for i in images if i.shape not in blind}
            if images:
                settings = {**examples_argument(examples), **self.decoding}
                texts = [
                    "" if t is None else t
                    for t in model.generate([*images, *grey.values()], self.prompt, self.max_tokens, **settings)
                ]
                about = {**blind, **dict(zip(grey, texts[len(images) :], strict=True))}
                blind.update((shape, text) for shape, text in about.items() if not isinstance(text, Unanswered))
                records.add(
                    {
                        **self.record(item, text, about[image.shape]),
                        **more,
                        **failures({"generated": text, "generated_blind": about[image.shape]}),
                    }
                    for item, image, text in zip(part, images, texts, strict=False)
                )
            if progress:
                progress(f"{self.name} {min(start + batch, len(items))}/{len(items)}")
        if records.folder is not None and type(self) is Captions:
            kept = ("item", "generated", "references")
            write_jsonl(records.folder / "captions.jsonl", ({k: r[k] for k in kept} for r in records.all()))

    def record(self, item: Sample, generated: str, blind: str) -> Record:
        """What is kept of an item."""
        return {
            "item": item.id,
            "cluster": item.id,
            "generated": generated,
            "generated_blind": blind,
            "references": item.captions,
        }

    def summarise(self, records: list[Record]) -> list[Result]:
        """BLEU, ROUGE-L and CIDEr-D with the controls blind and shuffled, in the order of ``METRICS``."""
        records = by_item(records)
        references = {r["item"]: r["references"] for r in records}
        generated, blind = ({r["item"]: r[field] for r in records} for field in ("generated", "generated_blind"))
        results = caption_results(self.name, references, generated, [r["cluster"] for r in records], self.seed, blind=blind)
        return sorted((r for r in results if r.metric in METRICS), key=lambda r: METRICS.index(r.metric))

    def credits(self, records: list[Record]) -> dict[str, dict[str, float]]:
        """What a paired test compares: the metrics that are means over items."""
        generated = {r["item"]: r["generated"] for r in records}
        corpus = Corpus({r["item"]: r["references"] for r in records}, generated)
        columns = {"cider": corpus.cider_d(), "rouge_l": corpus.rouge_l()}
        return {name: dict(zip(generated, values.tolist(), strict=True)) for name, values in columns.items()}


# --- captions in files: diptych metrics captions ---


def captions_in(table: Table) -> dict[str, str]:
    """{image: caption} of COCO results, sorted by image. Raises DiptychError if an image occurs twice."""
    captions = dict(zip(table.unique("image_id"), table.column("caption", "answer"), strict=True))
    return {image: captions[image] or "" for image in sorted(captions)}


def read_references(path: Path) -> dict[str, list[str]]:
    """{image: captions} of a COCO captions file, or of a table with image_id and caption."""
    table = read_rows(path, "annotations")
    captions: dict[str, list[str]] = {}
    for image, caption in zip(table.column("image_id", "id"), table.column("caption", "text"), strict=True):
        captions.setdefault(image, []).append(caption)
    return captions


def read_captions(results: Path, references: Path, partial: bool = False) -> tuple[dict[str, str], dict[str, list[str]]]:
    """{image: caption} of COCO results, and {image: reference captions} of the same images.

    ``partial``: images without a result are left out, rather than refused.
    """
    table = read_rows(results, "annotations")
    ids, known = table.unique("image_id"), read_references(references)
    given = set(ids)
    wanted = [i for i in known if i in given] if partial else list(known)
    try:
        match(ids, wanted, table, references)
    except DiptychError as error:
        if not partial and not set(ids) - set(known):
            raise DiptychError(f"{error}; add --partial to score only the images that have a caption") from None
        raise
    return captions_in(table), {i: known[i] for i in ids}


def score_captions(generated: dict[str, str], references: dict[str, list[str]]) -> list[Result]:
    """BLEU-1..4, ROUGE-L and CIDEr-D of what ``read_captions`` returns."""
    return caption_results("captions", references, generated, list(generated))
