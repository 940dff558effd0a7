"""Boxes as text: Kosmos-2's location tokens, and integers in brackets (MiniGPT-v2, TextHawk2, Shikra, Qwen-VL).

The square that a model reads is divided into ``bins`` × ``bins`` cells, numbered row by row; a box is the cell of its upper left
corner and that of its lower right one (Kosmos-2, Peng et al. 2023, arXiv:2306.14824, §2.1): "<phrase>a red fox</phrase><object>
<patch_index_0044><patch_index_0863></object>".
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from diptych.core.errors import DiptychError, nearest
from diptych.core.sample import Box
from diptych.data.regions.chunks import chunks
from diptych.data.text import EOS, MASK, PAD, Tokenizer, normalise

GROUNDING, PHRASE, PHRASE_END, OBJECT, OBJECT_END, AND = (
    "<grounding>", "<phrase>", "</phrase>", "<object>", "</object>", "</delimiter_of_multi_objects/>",
)  # fmt: skip
MARKS = (GROUNDING, PHRASE, PHRASE_END, OBJECT, OBJECT_END, AND)
_PAIR = re.compile(r"<patch_index_(\d+)>\s*<patch_index_(\d+)>")
_PHRASE = re.compile(rf"(?:{PHRASE}(.*?){PHRASE_END})?\s*{OBJECT}(.*?){OBJECT_END}", re.DOTALL)


def location(cell: int) -> str:
    """The token of a cell."""
    return f"<patch_index_{cell:04d}>"


def cells_of(box: Sequence[float], bins: int) -> tuple[int, int]:
    """The cells of a box's corners. box: left, top, right, bottom as shares of the square."""
    left, top = (min(max(math.floor(v * bins), 0), bins - 1) for v in box[:2])
    right, bottom = (min(max(math.ceil(v * bins - 1), 0), bins - 1) for v in box[2:])
    return top * bins + left, bottom * bins + right


def box_of_cells(first: int, last: int, bins: int) -> Box:
    """The box of two cells, as shares of the square: from the middle of the first to the middle of the last, or from edge to edge
    where they are in one row or column (as the published model's processor reads them).
    """
    (top, left), (bottom, right) = divmod(first, bins), divmod(last, bins)
    if top == bottom or left == right:
        return left / bins, top / bins, (right + 1) / bins, (bottom + 1) / bins
    return (left + 0.5) / bins, (top + 0.5) / bins, (right + 0.5) / bins, (bottom + 0.5) / bins


def written(phrase: str, boxes: Iterable[Sequence[float]], bins: int) -> str:
    """A phrase with its boxes as location tokens."""
    places = AND.join("".join(map(location, cells_of(box, bins))) for box in boxes)
    return f"{PHRASE}{phrase}{PHRASE_END}{OBJECT}{places}{OBJECT_END}"


def grounded(caption: str, regions: Sequence[tuple[str, Sequence[float]]], bins: int) -> str:
    """A caption with the location tokens of its noun chunks. regions: (phrase, box) with boxes as shares of the square.

    A chunk has the boxes of the regions with the same words, articles aside; if none has them, of the one region whose phrase ends
    in the chunk's head. Chunks without a region stay as they are.
    """
    plain = [(_plain(phrase), box) for phrase, box in regions]
    result, end = "", 0
    for chunk in chunks(caption):
        boxes = [box for phrase, box in plain if phrase == _plain(chunk.text)]
        if not boxes:
            alike = [box for phrase, box in plain if phrase.split()[-1:] == [chunk.head]]
            boxes = alike if len(alike) == 1 else []
        if boxes:
            result += caption[end : chunk.start] + written(chunk.text, boxes, bins)
            end = chunk.end
    return result + caption[end:]


def _plain(phrase: str) -> str:
    return re.sub(r"^(a|an|the|one) ", "", normalise(phrase))


class Mentioned(NamedTuple):
    """A phrase of an answer ("" if it names none) and a box for it, as shares of the square or picture."""

    phrase: str
    box: Box


def parse_boxes(text: str, convention: str = "kosmos-2") -> list[Mentioned]:
    """The boxes that a model wrote, in order. Boxes whose right edge is not right of the left one, or lower one not below the upper
    one, are left out, as is what is no box.

    convention: ``kosmos-2`` (32 × 32 cells; ``kosmos-2/16`` for others), or the number that stands for the whole side, ``100`` or
    ``1000`` (999 counts as its own: ``999``), of four integers in any brackets: "{<10><20><60><90>}", "[10, 20, 60, 90]",
    "(10,20),(60,90)". ``1``: four decimal fractions. DiptychError for another convention.
    """
    if convention.partition("/")[0] == "kosmos-2":
        bins = int(convention.partition("/")[2] or 32)
        found = []
        for phrase, places in _PHRASE.findall(text):
            for first, last in _PAIR.findall(places):
                if max(int(first), int(last)) < bins**2:
                    found.append(Mentioned(phrase.strip(), box_of_cells(int(first), int(last), bins)))
        return [m for m in found if _is_box(m.box)]
    if convention not in ("1", "100", "999", "1000"):
        raise DiptychError(
            f"boxes as text: no convention '{convention}'{nearest(convention, ['kosmos-2', '1', '100', '999', '1000'])}"
        )
    number = r"(\d+(?:\.\d+)?)" if convention == "1" else r"(\d{1,4})"
    between = r"[\s,<>()]+"
    pattern = re.compile(rf"[\[{{(<]+\s*{number}{between}{number}{between}{number}{between}{number}\s*[\]}})>]+")
    scale = float(convention)
    result = []
    for values in pattern.findall(text):
        a, b, c, d = (float(v) / scale for v in values)
        if _is_box((a, b, c, d)) and max(c, d) <= 1:
            result.append(Mentioned("", (a, b, c, d)))
    return result


def _is_box(box: Box) -> bool:
    return box[0] < box[2] and box[1] < box[3]


class LocationTokenizer(Tokenizer):
    """The byte-level BPE tokenizer with Kosmos-2's marks and a token for each of 32 × 32 cells. ``decode`` leaves them out, so a
    caption reads as usual; ``decode_grounded`` writes them.
    """

    bins = 32

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int, max_length: int) -> LocationTokenizer:
        """A tokenizer that learned ``vocab_size`` tokens from captions, to which marks and locations are added."""
        plain = Tokenizer.train(captions, vocab_size, max_length)
        plain._tokenizer.add_special_tokens([*MARKS, *map(location, range(cls.bins**2))])
        return cls(plain._tokenizer.to_str(), max_length)

    def mark(self, name: str) -> int:
        """The id of a mark or location."""
        token: Any = self._tokenizer.token_to_id(name)
        return int(token)

    def decode_grounded(self, ids: Iterable[int]) -> str:
        """The text up to [EOS], with marks and locations."""
        words: list[int] = []
        for i in map(int, ids):
            if i == EOS:
                break
            if i not in (PAD, MASK) and i != self.bos:
                words.append(i)
        text: Any = self._tokenizer.decode(words, skip_special_tokens=False)
        return str(text).strip()


class LocationTokenizer16(LocationTokenizer):
    """16 × 16 cells, for small pictures: a cell of a picture of 64 pixels has 4."""

    bins = 16
