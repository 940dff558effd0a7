"""How image and text embeddings lie to each other, over the retrieval items (metrics/gap.py).

A record an item with both vectors, which also go to ``embeddings.npz``. ``separability`` of 0.5 means that modality
cannot be told; ``matched_cosine`` is the mean cosine of image and caption, and its shuffled control that of strangers.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diptych.benchmarks.controls import blank, derangement
from diptych.benchmarks.metrics.gap import modality_gap, separability
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.statistics import Interval, function_interval, mean, mean_interval
from diptych.benchmarks.tasks.base import Items, Progress, at_least_two, images_of, not_finite, retrieval_items
from diptych.core.capabilities import Model
from diptych.core.files import write_atomically
from diptych.core.sample import Sample
from diptych.data.source import Source


@dataclass(frozen=True)
class Embedding:
    name: str = "embedding"
    needs: tuple[str, ...] = ("embed_image", "embed_text")
    n: int = 100
    seed: int = 0

    def items(self, source: Source) -> Items:
        return at_least_two(retrieval_items(source, self.n))

    def run(self, model: Model, items: list[Sample], records: Records, progress: Progress | None = None) -> None:
        if not all(item.id in records for item in items):
            images = images_of(items)
            image = model.embed_image([*images, blank(images[0])])
            text = model.embed_text([item.captions[0] for item in items])
            records.add(
                {
                    "item": item.id,
                    "cluster": item.id,
                    "image": image[i],
                    "text": text[i],
                    "blind_cosine": float(np.nan_to_num(image[-1] @ text[i])),
                    "nans": not_finite(image[i]) + not_finite(text[i]),
                }
                for i, item in enumerate(items)
            )
        if records.folder is not None:
            image, text = _vectors(records.all())
            data = io.BytesIO()
            np.savez(data, image=image, text=text)
            write_atomically(records.folder / "embeddings.npz", lambda path: path.write_bytes(data.getvalue()))

    def summarise(self, records: list[Record]) -> list[Result]:
        records = sorted(records, key=lambda r: str(r["item"]))
        clusters = [r["cluster"] for r in records]
        image, text = _vectors(records)
        gap = function_interval(lambda index: modality_gap(image[index], text[index]), clusters)
        told = separability(image, text, seed=self.seed)
        cosine = np.einsum("ne,ne->n", image, text).astype(np.float64)
        order = derangement(len(records), seed=self.seed)
        strangers = None if order is None else mean(np.einsum("ne,ne->n", image[order], text))
        nans = sum(r["nans"] for r in records)

        def result(metric: str, found: Interval, **more: Any) -> Result:
            n, clustered = len(records), len(set(clusters))
            return Result(self.name, metric, found.value, found.low, found.high, n, clustered, nans=nans, **more)

        blind = mean([r["blind_cosine"] for r in records])
        return [
            result(
                "modality_gap",
                replace(gap, low=max(0.0, gap.low)),
                higher_is_better=False,
            ),
            result("separability", mean_interval(told, clusters), chance=0.5, higher_is_better=False),
            result(
                "matched_cosine",
                mean_interval(cosine, clusters, share=False),
                controls={"blind": blind, "shuffled": strangers},
            ),
        ]


def _vectors(records: list[Record]) -> tuple[np.ndarray, np.ndarray]:
    """Image and text embeddings, float32 [n, E]; what is not finite counts as 0."""
    image, text = (np.nan_to_num(np.array([r[side] for r in records], dtype=np.float32)) for side in ("image", "text"))
    return image, text
