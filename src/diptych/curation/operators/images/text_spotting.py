"""Text in pictures: where it is, what it reads, and how well the caption fits without it (T-MARS).

A picture that spells its caption teaches reading, not seeing (Maini et al. 2023, arXiv:2307.03132).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from diptych.core.extras import need
from diptych.core.words import words
from diptych.curation.operators.base import Columns, Operator, arrays
from diptych.curation.operators.models import stamp
from diptych.curation.operators.pairs.similarity import score

BOXES = pa.list_(pa.list_(pa.int32()))  # x0, y0, x1, y1 each, pixels
_LONGEST = 960  # pixels: larger pictures are scaled to this length
_LETTERS = 2  # a line with fewer letters does not count as text
_SURROUND = 0.35  # width of the surround, as a share of the box's height


@cache
def _reader() -> Any:
    for module in ("onnxruntime", "rapidocr"):
        need(module, extra="ocr", what="the operator text_spotting")
    return need("rapidocr", extra="ocr", what="the operator text_spotting").RapidOCR(
        params={
            "Global.log_level": "error",
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,  # workers are the parallelism
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            "Det.limit_type": "max",
            "Det.limit_side_len": _LONGEST,
        }
    )


def spot(picture: np.ndarray, read: bool = True) -> tuple[list[list[int]], str]:
    """The boxes of lines of text, and the text from top to bottom."""
    result = _reader()(np.ascontiguousarray(picture[..., ::-1]), use_det=True, use_rec=read, use_cls=False)
    if result.boxes is None or not len(result.boxes):
        return [], ""
    height, width = picture.shape[:2]
    texts = list(result.txts or ()) if read else []
    quads = np.asarray(result.boxes)
    if read:  # the detector also finds outlines of drawings, which read as single letters
        letters = [i for i, text in enumerate(texts) if sum(c.isalnum() for c in text) >= _LETTERS]
        quads, texts = quads[letters], [texts[i] for i in letters]
    boxes = []
    for quad in quads:
        (x0, y0), (x1, y1) = np.floor(quad.min(0)), np.ceil(quad.max(0))
        boxes.append([max(0, int(x0)), max(0, int(y0)), min(width, int(x1)), min(height, int(y1))])
    return boxes, " ".join(texts)


def covered(boxes: Sequence[Sequence[int]], height: int, width: int) -> np.ndarray:
    """Pixels under any of the boxes, bool [height, width]."""
    mask = np.zeros((height, width), bool)
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = True
    return mask


def overlap(caption: str, spotted: str) -> float:
    """The share of the caption's words that the picture spells; case, punctuation and missing spaces do not matter."""
    wanted, read = words(caption.casefold()), words(spotted.casefold())
    if not wanted:
        return 0.0
    letters, tokens = "".join(read), set(read)
    return sum(word in tokens or (len(word) > 3 and word in letters) for word in wanted) / len(wanted)


@dataclass(frozen=True, kw_only=True)
class TextSpotting(Operator):
    """Text in the picture, by RapidOCR (PP-OCR): ``text_boxes``, ``text_area``, ``spotted_text``, ``text_overlap``.

    text_area: the share of the picture that the boxes cover. text_overlap: the share of the caption's words in the spotted text,
    near 1 for a picture of its own caption. ``read: false`` finds the boxes only.
    """

    name = "text_spotting"
    version = 2
    resources: ClassVar[Literal["cpu", "model"]] = "model"
    inputs = ("pixels", "text")
    outputs = {  # noqa: RUF012 - declared, never changed
        "text_boxes": BOXES,
        "text_area": pa.float32(),
        "spotted_text": pa.string(),
        "text_overlap": pa.float32(),
    }
    read: bool = True

    def compute(self, batch: pa.RecordBatch) -> Columns:
        """The outputs for the rows of ``batch``, which holds ``row``, ``id``, ``hash`` and the declared inputs."""
        pictures = arrays(batch["pixels"])
        spotted = [spot(picture, self.read) for picture in pictures]
        areas = [float(covered(boxes, *p.shape[:2]).mean()) for (boxes, _), p in zip(spotted, pictures, strict=True)]
        overlaps = [overlap(caption, text) for (_, text), caption in zip(spotted, batch["text"].to_pylist(), strict=True)]
        return {
            "text_boxes": pa.array([boxes for boxes, _ in spotted], BOXES),
            "text_area": areas,
            "spotted_text": [text for _, text in spotted],
            "text_overlap": overlaps if self.read else [None] * len(spotted),
        }


def without_text(picture: np.ndarray, boxes: Sequence[Sequence[int]]) -> np.ndarray:
    """The picture with each box filled with the mean colour of its surround, which excludes other boxes."""
    if not boxes:
        return picture
    height, width = picture.shape[:2]
    letters = covered(boxes, height, width)
    filled = picture.copy()
    for x0, y0, x1, y1 in boxes:
        reach = max(2, round(_SURROUND * (y1 - y0)))
        window = (slice(max(0, y0 - reach), y1 + reach), slice(max(0, x0 - reach), x1 + reach))
        surround = picture[window][~letters[window]]
        if not len(surround):  # boxes fill the surround: use the rest of the picture, or all of it
            surround = picture[~letters] if not letters.all() else picture.reshape(-1, 3)
        filled[y0:y1, x0:x1] = np.rint(surround.mean(0))
    return filled


@dataclass(frozen=True, kw_only=True)
class MaskedScore(Operator):
    """``masked_clip_score``: the score of the picture without its text with the original caption. After ``text_spotting``.

    T-MARS keeps the better half: ``keep: {column: masked_clip_score, top: 0.5}``.
    """

    name = "masked_clip_score"
    resources: ClassVar[Literal["cpu", "model"]] = "model"
    inputs = ("pixels", "text", "text_boxes")
    outputs = {"masked_clip_score": pa.float32()}  # noqa: RUF012 - declared, never changed
    model: str = "conse"

    def compute(self, batch: pa.RecordBatch) -> Columns:
        """The outputs for the rows of ``batch``, which holds ``row``, ``id``, ``hash`` and the declared inputs."""
        pictures = [without_text(p, b) for p, b in zip(arrays(batch["pixels"]), batch["text_boxes"].to_pylist(), strict=True)]
        return {"masked_clip_score": score(self.model, pictures, batch["text"].to_pylist())}

    def depends(self) -> str:
        """Anything else that the result depends on, such as a hash of a model's files; part of the result's address."""
        return stamp(self.model)
