"""The pictures of the rows on the page, small and embedded."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

from diptych.core.errors import DiptychError
from diptych.curation.engine.shards import Keys, Shard
from diptych.curation.engine.store import Store
from diptych.curation.explain import Result
from diptych.data.image import decode
from diptych.data.source import BrokenItem
from diptych.report.drawing.marks import escape

SIDE = 176  # pixels of the longer side
LETTERS = 90  # of a caption


class Album:
    """The pictures of all wanted rows, read shard by shard, so that each shard is opened once."""

    def __init__(self, result: Result, wanted: Iterable[int]):
        self.result = result
        self.shown: dict[int, str] = {}  # {row: data URL, or the reason why there is none}
        self.size: dict[int, tuple[int, int]] = {}
        by_shard: dict[int, list[int]] = defaultdict(list)
        for row in wanted:
            by_shard[row >> 32].append(row & 0xFFFFFFFF)
        for number, places in by_shard.items():
            self._read(number, places)

    def _read(self, number: int, places: list[int]) -> None:
        info = self.result.manifest["shards"][number]
        keys = Keys(number, info["input"], (), (), (), "", "")
        shard = Shard(self.result.plan, [], Store(self.result.path / "store"), keys)
        for place in sorted(set(places)):
            row = (number << 32) + place
            try:
                mask = np.arange(info["rows"]) == place
                _, data, reasons = next(shard.images(mask))
                self.shown[row] = self._small(row, data[0]) if data[0] is not None else str(reasons[0])
            except BrokenItem as error:
                self.shown[row] = error.problem.reason
            except (DiptychError, OSError) as error:
                self.shown[row] = f"the picture no longer exists: {error}"

    def _small(self, row: int, data: bytes) -> str:
        from PIL import Image

        picture = Image.fromarray(decode(data, ""))
        self.size[row] = picture.size
        scale = SIDE / max(picture.size)
        if scale < 1:
            size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        file = io.BytesIO()
        picture.save(file, "WEBP", quality=72)
        return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"

    def shot(self, row: dict[str, Any], note: str = "", mark: str = "") -> str:
        """The picture of a row with its caption and a note, HTML."""
        shown = self.shown.get(row["row"], "no picture")
        words = row["text"] or ""
        short = words if len(words) <= LETTERS else words[: LETTERS - 1] + "…"
        where = f"{row['id']}" + (
            f", {self.size[row['row']][0]} × {self.size[row['row']][1]} pixels" if row["row"] in self.size else ""
        )
        if shown.startswith("data:"):
            picture = f'<img src="{shown}" alt="{escape(short)}" title="{escape(where)}" loading="lazy">'
        else:
            picture = f'<div class="lost-picture" title="{escape(where)}">{escape(shown[:120])}</div>'
        caption = f'<span class="said">{escape(short)}</span>' if short else '<span class="said none">no caption</span>'
        return f'<div class="shot {mark}">{picture}{caption}{f"<span class=note>{note}</span>" if note else ""}</div>'


def shots(inner: Iterable[str]) -> str:
    """Pictures side by side, HTML."""
    return f'<div class="shots">{"".join(inner)}</div>'
