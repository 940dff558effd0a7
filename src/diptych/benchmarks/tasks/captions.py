"""Captioning, judged against the item's own captions as the COCO server does (metrics/captions.py).

A record an item with the text generated from the image and from a grey one of its size. Shuffled: judged against the
references of another item. CIDEr-D's interval keeps the document frequencies of all references. Texts are greedy unless the task's settings
say otherwise: ``captions?beams=4``, ``captions?temperature=0.8&top_p=0.9``; the seed is the task's. ``captions?shots=4``: four training images with a
caption each are shown before, the same for every item and control, drawn by the seed; ``&train=ADDRESS`` draws them from other data.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from diptych.benchmarks.controls import blank, derangement
from diptych.benchmarks.metrics import captions as metric
from diptych.benchmarks.records import Record, Records, Result, write_jsonl
from diptych.benchmarks.statistics import Interval, function_interval, mean_interval
from diptych.benchmarks.tasks.base import Items, Progress, at_least_two, retrieval_items
from diptych.benchmarks.tasks.shots import check_takes, told
from diptych.core.capabilities import Example, Image, Model
from diptych.core.sample import Sample
from diptych.data.source import Source

Scores = dict[str, Interval]
DECODING = ("beams", "length_penalty", "temperature", "top_k", "top_p", "repetition_penalty")


@dataclass(frozen=True)
class Captions:
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

            decoding_of(max_tokens=self.max_tokens, **self.decoding)  # a wrong setting is told before anything is loaded
            object.__setattr__(self, "needs", ("generate", "decoding"))

    @property
    def decoding(self) -> dict[str, Any]:
        """What differs from greedy decoding, by the names that ``generate`` knows."""
        given = {
            f.name: getattr(self, f.name) for f in fields(Captions) if f.name in DECODING and getattr(self, f.name) != f.default
        }
        return {**given, "seed": self.seed} if given else {}

    def items(self, source: Source) -> Items:
        return at_least_two(retrieval_items(source, self.n))

    def examples(self, source: Source, sample: Sample) -> list[Example]:
        """What of a training sample can be shown before an item."""
        return [] if sample.image is None else [Example(sample.image, caption) for caption in sample.captions]

    def run(self, model: Model, items: list[Sample], records: Records, progress: Progress | None = None) -> None:
        check_takes(model, self.shots)
        examples = getattr(items, "examples", [])
        noted = {"examples": [e.text for e in examples]} if examples else {}
        blind: dict[tuple[int, ...], str] = {}  # the same image gives the same text: one grey one of each size says it all
        for start in range(0, len(items), self.batch):
            part = [item for item in items[start : start + self.batch] if item.id not in records]
            pictures = [item.image for item in part if item.image is not None]
            grey: dict[tuple[int, ...], Image] = {p.shape: blank(p) for p in pictures if p.shape not in blind}
            if pictures:
                said = model.generate([*pictures, *grey.values()], self.prompt, self.max_tokens, **told(examples), **self.decoding)
                blind.update(zip(grey, said[len(pictures) :], strict=True))
                records.add(
                    {**self.record(item, text, blind[picture.shape]), **noted}
                    for item, picture, text in zip(part, pictures, said, strict=False)
                )
            if progress:
                progress(f"{self.name} {min(start + self.batch, len(items))}/{len(items)}")
        if records.folder is not None and type(self) is Captions:
            kept = ("item", "generated", "references")
            write_jsonl(records.folder / "captions.jsonl", ({k: r[k] for k in kept} for r in records.all()))

    def record(self, item: Sample, generated: str, blind: str) -> Record:
        return {
            "item": item.id,
            "cluster": item.id,
            "generated": generated,
            "generated_blind": blind,
            "references": item.captions,
        }

    def summarise(self, records: list[Record]) -> list[Result]:
        records = sorted(records, key=lambda r: str(r["item"]))
        references = {r["item"]: r["references"] for r in records}
        generated = {r["item"]: r["generated"] for r in records}
        main = _judge(references, generated, [r["cluster"] for r in records])
        controls = {"blind": _judge(references, {r["item"]: r["generated_blind"] for r in records})}
        order = derangement(len(records), seed=self.seed)
        if order is not None:
            controls["shuffled"] = _judge(
                {r["item"]: records[i]["references"] for r, i in zip(records, order, strict=True)}, generated
            )
        return [
            Result(
                task=self.name,
                metric=name,
                value=interval.value,
                low=interval.low,
                high=interval.high,
                n=len(records),
                clusters=len({r["cluster"] for r in records}),
                controls={control: found[name].value for control, found in controls.items()},
            )
            for name, interval in main.items()
        ]

    def credits(self, records: list[Record]) -> dict[str, dict[str, float]]:
        """What can be tested in pairs: the metrics that are means over items."""
        references = {r["item"]: r["references"] for r in records}
        generated = {r["item"]: r["generated"] for r in records}
        return {"cider": metric.cider_d_items(references, generated), "rouge_l": metric.rouge_l_items(references, generated)}


def _judge(references: metric.References, generated: metric.Hypotheses, clusters: list[str] | None = None) -> Scores:
    """Without clusters the intervals are not computed."""
    counts = metric.bleu_counts(references, generated)
    cider = list(metric.cider_d_items(references, generated).values())
    rouge = list(metric.rouge_l_items(references, generated).values())
    draws = 2000 if clusters else 1
    groups = clusters or list(generated)

    def bleu4(index: np.ndarray) -> float:
        return metric.bleu_of_counts(counts[index])[3]

    return {
        "cider": mean_interval(cider, groups, share=False, resamples=draws),
        "bleu4": function_interval(bleu4, groups, share=True, resamples=draws),
        "rouge_l": mean_interval(rouge, groups, resamples=draws),
    }
