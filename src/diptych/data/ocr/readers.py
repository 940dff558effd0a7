"""Readers: what turns a picture into lines of text with boxes.

| kind | |
|---|---|
| ``rapidocr`` | the detector and recogniser of rapidocr (``pip install 'diptych[ocr]'``), with the models in its package |
| ``truth`` | the words that ``scenes:text`` knows of its own pictures: exact, to test what reading can give |
| ``package.module:name`` | your own: a class with ``read(picture)``, or a function of a picture, that gives lines |
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field as Limit

from diptych.core.extras import need
from diptych.core.sample import Sample

Picture = np.ndarray  # uint8 [height, width, 3], RGB
Quad = tuple[float, float, float, float]  # left, top, right, bottom in pixels


class Line(NamedTuple):
    """A line of text. score: the reader's confidence, 0 to 1."""

    text: str
    box: Quad
    score: float = 1.0


class Reader:
    """Base class of readers."""

    def read(self, picture: Picture) -> list[Line]:
        """The lines of text in a picture, in any order."""
        raise NotImplementedError

    def of_sample(self, sample: Sample) -> list[list[Line]]:
        """The lines of each picture of a sample."""
        return [self.read(picture) for picture in sample.images]


class Called(Reader):
    """A function of a picture as a reader; it gives ``Line``s or (text, box) pairs."""

    def __init__(self, function: Callable[[Picture], Sequence[Any]]):
        self.function = function

    def read(self, picture: Picture) -> list[Line]:
        """What the function gives."""
        return [line if isinstance(line, Line) else Line(*line) for line in self.function(picture)]


class Truth(Reader):
    """The words that a sample knows of its picture (``extra["words"]``). Of a picture alone, without its sample: those of the equal
    picture among the first ``search`` of the validation and test parts of ``source``; none for any other picture.

    source: an address, the training data if it is not given. missed: share of the lines that are left out, as by a reader that is
    not perfect; which, depends on the line alone.
    """

    def __init__(
        self,
        *,
        source: str = "",
        missed: Annotated[float, Limit(ge=0, le=1)] = 0.0,
        search: Annotated[int, Limit(ge=0)] = 2000,
    ):
        self.source, self.missed, self.search = source, missed, search
        self._known: dict[bytes, list[Line]] = {}
        self._more: Iterator[Sample] | None = None

    def of_sample(self, sample: Sample) -> list[list[Line]]:
        """Its own words, of its one picture; of other samples nothing."""
        lines = self._lines(sample)
        return [lines if k == 0 and sample.image is not None else [] for k in range(len(sample.images))]

    def read(self, picture: Picture) -> list[Line]:
        """The words of the equal picture of the source."""
        key = digest(picture)
        if self._more is None:
            self._more = self._samples()
        while key not in self._known and (sample := next(self._more, None)) is not None:
            if sample.image is not None:
                self._known[digest(sample.image)] = self._lines(sample)
        return self._known.get(key, [])

    def _samples(self) -> Iterator[Sample]:
        if not self.source:
            return
        from diptych.data.source import usable_samples
        from diptych.data.sources import open_source

        for part in ("test", "validation"):
            yield from usable_samples(open_source(self.source).split(part), self.search)

    def _lines(self, sample: Sample) -> list[Line]:
        """Words of one carrier together, as an engine joins them."""
        joined: dict[int, list[dict[str, Any]]] = {}
        for k, word in enumerate(sample.extra.get("words") or []):
            joined.setdefault(word.get("line", -1 - k), []).append(word)
        lines = []
        for words in joined.values():
            left, top, right, bottom = zip(*(w["box"] for w in words), strict=True)
            lines.append(Line(" ".join(w["text"] for w in words), (min(left), min(top), max(right), max(bottom))))
        return [line for line in lines if zlib.crc32(repr(line).encode()) / 2**32 >= self.missed]


def digest(picture: Picture) -> bytes:
    """A hash of a picture's pixels and shape."""
    return hashlib.blake2b(np.ascontiguousarray(picture).tobytes(), digest_size=16, key=str(picture.shape).encode()).digest()


class Rapid(Reader):
    """rapidocr. A picture with a shorter side below ``side`` pixels is enlarged to it first, since the detector misses print of a
    few pixels. Pictures larger than that are first searched at this size; only the region with text (``roi``) is then read, at the
    picture's own size (the region of interest of Lumos, section 3.1). score: lines with a lower confidence are left out.
    """

    def __init__(
        self,
        *,
        side: Annotated[int, Limit(ge=32)] = 384,
        roi: bool = True,
        score: Annotated[float, Limit(ge=0, le=1)] = 0.5,
        margin: Annotated[float, Limit(ge=0)] = 0.05,
    ):
        self.side, self.roi, self.score, self.margin = side, roi, score, margin
        self._engine: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the engine, which each process opens for itself."""
        return {**self.__dict__, "_engine": None}

    def read(self, picture: Picture) -> list[Line]:
        """The lines that the engine reads."""
        shorter = min(picture.shape[:2])
        if self.roi and shorter > 2 * self.side:
            found = region_of_interest(self.find(resized(picture, self.side)), picture.shape[:2], self.margin)
            if found is None:
                return []
            left, top, right, bottom = found
            return shifted(self._scaled(picture[top:bottom, left:right]), left, top)
        return self._scaled(picture)

    def _scaled(self, picture: Picture) -> list[Line]:
        """Lines of a picture that is enlarged if it is small; boxes in its own pixels."""
        factor = self.side / min(picture.shape[:2])
        if factor <= 1:
            return self.lines(picture)
        return [line._replace(box=tuple(edge / factor for edge in line.box)) for line in self.lines(resized(picture, self.side))]

    def find(self, picture: Picture) -> list[Quad]:
        """The boxes of text as shares of the picture, without reading it."""
        height, width = picture.shape[:2]
        found = self._run(picture, read=False)
        return [(x0 / width, y0 / height, x1 / width, y1 / height) for x0, y0, x1, y1 in _boxes(found.boxes)]

    def lines(self, picture: Picture) -> list[Line]:
        """Lines with boxes in the picture's pixels, at its own size."""
        found = self._run(picture, read=True)
        scores = found.scores if found.scores is not None else [1.0] * len(found.txts or ())
        rows = zip(found.txts or (), _boxes(found.boxes), scores, strict=True)
        return [Line(text.strip(), box, float(score)) for text, box, score in rows if text.strip() and score >= self.score]

    def _run(self, picture: Picture, read: bool) -> Any:
        if self._engine is None:
            for module in ("onnxruntime", "rapidocr"):
                need(module, extra="ocr", what="data.fields.turns.reader: rapidocr")
            self._engine = need("rapidocr", extra="ocr", what="data.fields.turns.reader: rapidocr").RapidOCR(
                params={
                    "Global.log_level": "error",
                    "EngineConfig.onnxruntime.intra_op_num_threads": 1,
                    "EngineConfig.onnxruntime.inter_op_num_threads": 1,
                    "Det.limit_type": "min",
                    "Det.limit_side_len": self.side,
                }
            )
        bgr = np.ascontiguousarray(picture[..., ::-1])
        return self._engine(bgr, use_det=True, use_rec=read, use_cls=False)


def _boxes(quads: Any) -> list[Quad]:
    """Upright boxes around quadrilaterals."""
    if quads is None or not len(quads):
        return []
    points = np.asarray(quads, dtype=float)
    return [tuple(map(float, (*quad.min(0), *quad.max(0)))) for quad in points]  # type: ignore[misc]


def resized(picture: Picture, side: int) -> Picture:
    """The picture with this shorter side."""
    from PIL import Image

    height, width = picture.shape[:2]
    factor = side / min(height, width)
    size = round(width * factor), round(height * factor)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC if factor > 1 else Image.Resampling.BOX))


def region_of_interest(boxes: Sequence[Quad], shape: tuple[int, int], margin: float) -> tuple[int, int, int, int] | None:
    """The rectangle around all boxes, with a margin as a share of the picture, in pixels: left, top, right, bottom; None without
    boxes. boxes: as shares of the picture; shape: its height and width.
    """
    if not boxes:
        return None
    height, width = shape
    left, top, right, bottom = zip(*boxes, strict=True)
    return (
        max(0, int((min(left) - margin) * width)),
        max(0, int((min(top) - margin) * height)),
        min(width, int(np.ceil((max(right) + margin) * width))),
        min(height, int(np.ceil((max(bottom) + margin) * height))),
    )


def shifted(lines: Sequence[Line], x: float, y: float) -> list[Line]:
    """Lines of a part of a picture, with boxes in the whole of it. x, y: the part's top left corner."""
    return [line._replace(box=(line.box[0] + x, line.box[1] + y, line.box[2] + x, line.box[3] + y)) for line in lines]
