"""Do drawn scenes show what the caption asked for? A network trained on real scenes reads them, and what it reads is compared
with the caption.

One record per item: the caption, and what the reader reads in the drawing, in the real scene and, for a model that draws in codes,
in the real scene after encoding and decoding. Metrics are those of ``facts``: is all that the caption claims true of the drawing
(``all_true``), its objects, count, colour, relation, position; and ``colours_counted``: are there as many objects of each colour as
it claims, regardless of their concepts. ``real/…`` is the reader on the scenes themselves, the highest value that a drawing can be
expected to reach; ``codes/…`` is what the model's codes keep of that, and ``codes/psnr`` what they keep of the pixels, in decibels.
Shuffled: another caption's drawing. Half of the captions describe combinations that training never shows.
"""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diptych.benchmarks.base import Items, NotApplicable, Progress, by_item, retrieval_items
from diptych.benchmarks.controls import derangement
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.results import of_sums, shares
from diptych.benchmarks.statistics import mean
from diptych.benchmarks.texts.facts import Claims, claim_credits, parse_caption
from diptych.core.capabilities import Drawing as Draws
from diptych.core.sample import Sample, captioned
from diptych.data.scenes import Scenes
from diptych.data.source import Source

METRICS = ("all_true", "objects", "count", "colour", "relation", "position", "colours_counted")
VERSIONS = {"drawn": "", "real": "real/", "codes": "codes/"}  # what was read: the prefix of its metrics
HELD_OUT = "heldout-combinations"


@dataclass(frozen=True)
class Drawing:
    """Images drawn from captions, judged by the truth of the scene."""

    name: str = "drawing"
    needs: tuple[str, ...] = ("draw",)
    n: int = 100  # captions of seen combinations, and as many of held-out ones
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 3.0
    seed: int = 0
    reader: int = 32_000  # scenes that the reader is trained on
    batch: int = 128

    def items(self, source: Source) -> Items:
        """(sample, seen or held-out combination, its scenes) of each."""
        if not isinstance(source, Scenes):
            raise NotApplicable("only scenes know all that is true of them (scenes:…)")
        if source.world.split == "heldout-concepts":
            raise NotApplicable("a model cannot draw concepts that it never saw or read of; evaluate on another split")
        parts = {"seen": source, "held-out": source.split(HELD_OUT)}
        if source.world.split == HELD_OUT:
            parts = {"held-out": source}
        return Items((sample, name, source) for name, part in parts.items() for sample in retrieval_items(part, self.n))

    def run(
        self, model: Draws, items: list[tuple[Sample, str, Scenes]], records: Records, progress: Progress | None = None
    ) -> None:
        """One record per caption with what the reader sees in the drawing, in the real scene and, if the model can reconstruct, in
        the reconstruction. The reader is trained first if no trained one is kept. With a folder, the drawings are saved in it.
        """
        # Parts are always the same, also of a task that goes on: a part's seed decides what is drawn.
        parts = [(start, items[start : start + self.batch]) for start in range(0, len(items), self.batch)]
        todo = [(start, part) for start, part in parts if any(item[0].id not in records for item in part)]
        if records.folder is not None and not len(records):
            shutil.rmtree(records.folder / "drawings", ignore_errors=True)  # of other settings
        settings = {k: getattr(self, k) for k in ("temperature", "top_k", "top_p", "guidance")}
        reader: Any = None
        for start, part in todo:
            reader = reader or self._reader(items[0][2], progress)
            real = [sample.image for sample, _, _ in part if sample.image is not None]
            drawn = model.draw([sample.captions[0] for sample, _, _ in part], **settings, seed=self.seed + start)
            versions = {"drawn": drawn, "real": real}
            errors: list[dict[str, float]] = [{} for _ in part]
            if "reconstruct" in model.capabilities:
                versions["codes"] = model.reconstruct(real)
                errors = [{"error": squared_error(a, b)} for a, b in zip(versions["codes"], real, strict=True)]
            seen = {version: reader.read(_fitted(images, reader.size)) for version, images in versions.items()}
            if records.folder is not None:
                for (sample, _, _), picture in zip(part, drawn, strict=True):
                    _keep(records, sample.id, picture)
            records.add(
                {
                    "item": sample.id,
                    "cluster": sample.id,
                    "caption": sample.captions[0],
                    "graph": sample.extra["graph"],
                    "seen": {version: graphs[i] for version, graphs in seen.items()},
                    "slices": {"combination": combination},
                    **errors[i],
                }
                for i, (sample, combination, _) in enumerate(part)
            )
            if progress:
                progress(f"{self.name} {min(start + self.batch, len(items))}/{len(items)}")
        if records.folder is not None:
            self._sheet(records, [item for item in items if item[0].id in records])

    def _reader(self, source: Scenes, progress: Progress | None) -> Any:
        from diptych.benchmarks.drawings.scene_reader import scene_reader

        return scene_reader(source, self.reader, progress or (lambda text: None))

    def _sheet(self, records: Records, items: list[tuple[Sample, str, Scenes]]) -> None:
        """A contact sheet of the first drawings of either kind, each with its caption and what the reader read."""
        from diptych.data.image import decode
        from diptych.data.sheet import contact_sheet

        shown: list[Sample] = []
        by_id = {r["item"]: r for r in records.all()}
        for name in dict.fromkeys(name for _, name, _ in items):
            for sample, _, _ in [item for item in items if item[1] == name][:12]:
                picture = decode(_path(records, sample.id).read_bytes(), sample.id)
                text = f"{name}; read as: {_described(by_id[sample.id]['seen']['drawn'])}"
                shown.append(Sample(sample.id, image=picture, text=captioned([sample.captions[0], text])))
        contact_sheet(shown, records.folder / "drawings" / "sheet.png", columns=6, side=144)  # type: ignore[operator]

    def summarise(self, records: list[Record]) -> list[Result]:
        """The shares of ``METRICS`` for the drawings, then with the prefixes ``real/`` and ``codes/`` for the real and the
        reconstructed scenes, and ``codes/psnr`` in decibels if the model reconstructs.
        """
        records = by_item(records)
        claims = [parse_caption(r["caption"]) for r in records]
        order = derangement(len(records), seed=self.seed)
        others = [] if order is None else [credits_of(c, records[i]["seen"]["drawn"]) for c, i in zip(claims, order, strict=True)]
        results = []
        for version, prefix in VERSIONS.items():
            if any(version not in r["seen"] for r in records):
                continue
            credits = [credits_of(c, r["seen"][version]) for c, r in zip(claims, records, strict=True)]
            rows = [{**r, "correct": {prefix + m: c[m] for m in METRICS if m in c}} for r, c in zip(records, credits, strict=True)]
            of_metric = {r.metric: r for r in shares(self.name, rows)}
            for m in (m for m in METRICS if prefix + m in of_metric):
                shuffled = [c[m] for c in others if m in c] if version == "drawn" else []
                controls = {"shuffled": mean(shuffled)} if shuffled else {}
                results.append(replace(of_metric[prefix + m], controls=controls))
        if records and all("error" in r for r in records):
            results.append(_psnr(self.name, records))
        return results

    def credits(self, records: list[Record]) -> dict[str, dict[str, float]]:
        """{"all_true": {item: 0 or 1}} of the drawings: what a paired test compares."""
        return {
            "all_true": {r["item"]: claim_credits(parse_caption(r["caption"]), r["seen"]["drawn"])["all_true"] for r in records}
        }


def credits_of(claims: Claims, graph: dict[str, Any]) -> dict[str, float]:
    """The credits of ``facts``, and ``colours_counted`` where the caption gives a colour to every group."""
    credits = claim_credits(claims, graph)
    wanted, seen = (_by_colour(things) for things in (claims.things, graph["things"]))
    return credits if "" in wanted else {**credits, "colours_counted": float(wanted == seen)}


def _by_colour(things: list[dict[str, Any]]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for t in things:
        counts[t["colour"]] += t["count"]
    return counts


def squared_error(image: np.ndarray, real: np.ndarray) -> float:
    """The mean squared error of two uint8 images, with values divided by 255."""
    return float((((image.astype(np.float64) - real) / 255) ** 2).mean())


def _psnr(task: str, records: list[Record]) -> Result:
    """Peak signal-to-noise ratio of all pictures together."""
    from diptych.objectives.vqvae import psnr

    rows = np.array([[r["error"], 1.0] for r in records])
    clusters = [r["cluster"] for r in records]
    return of_sums(task, "codes/psnr", rows, lambda s: np.vectorize(psnr)(s[..., 0] / s[..., 1], 1.0), clusters, bounded=False)


def _described(graph: dict[str, Any]) -> str:
    things = [f"{t['count']} {t['colour']} {t['concept']}".replace("  ", " ") for t in graph["things"]]
    return f" {graph['relation']} ".join(things) if graph["relation"] else f"{things[0]} {graph['position']}".strip()


def _fitted(images: list[np.ndarray], size: int) -> list[np.ndarray]:
    from diptych.data.image import resize

    return [image if image.shape[:2] == (size, size) else resize(image, size) for image in images]


def _path(records: Records, item: str) -> Any:
    assert records.folder is not None
    return records.folder / "drawings" / f"{item.replace('/', '-')}.png"


def _keep(records: Records, item: str, picture: np.ndarray) -> None:
    from PIL import Image

    from diptych.core.files import write_atomically

    write_atomically(_path(records, item), lambda path: Image.fromarray(picture).save(path, "PNG"))
