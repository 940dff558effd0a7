"""From lines of text to words in a prompt."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Annotated, Any

import numpy as np
from pydantic import Field as Limit

from diptych.core.errors import DiptychError
from diptych.core.registry import check_options, resolve
from diptych.core.sample import IMAGE, Sample, Turn
from diptych.data.ocr.readers import Called, Line, Reader, digest

READERS = {
    "truth": "diptych.data.ocr.readers:Truth",
    "rapidocr": "diptych.data.ocr.readers:Rapid",
}
WHERE = "data.fields.turns.reader"
BEFORE, NOTHING = "text in the picture:", "none"
_KEPT = 4096  # pictures of which the words are remembered


class OcrPrompt:
    """Writes what a reader sees: "text in the picture: open <12 30 45 44>, 42 <70 8 91 20>", in reading order.

    places: each line is followed by its box, left, top, right and bottom in hundredths of the picture. most: lines at most, the
    largest; they are written in reading order.
    """

    def __init__(self, reader: Reader, *, places: bool = True, most: Annotated[int, Limit(ge=1)] = 20):
        self.reader, self.places, self.most = reader, places, most
        self._written: dict[bytes, str] = {}

    def of_sample(self, sample: Sample) -> list[str]:
        """The words for each picture of a sample."""
        found = self.reader.of_sample(sample)
        return [self.written(lines, picture.shape[:2]) for lines, picture in zip(found, sample.images, strict=True)]

    def of_picture(self, picture: np.ndarray) -> str:
        """The words for a picture, uint8 [height, width, 3]; the same picture is read once."""
        key = digest(picture)
        if key not in self._written:
            while len(self._written) >= _KEPT:
                del self._written[next(iter(self._written))]
            self._written[key] = self.written(self.reader.read(picture), picture.shape[:2])
        return self._written[key]

    def written(self, lines: Sequence[Line], shape: tuple[int, int]) -> str:
        """Lines as words. shape: height and width of the picture."""
        if len(lines) > self.most:
            by_area = sorted(lines, key=lambda line: -(line.box[2] - line.box[0]) * (line.box[3] - line.box[1]))
            lines = by_area[: self.most]
        texts = [self._line(line, shape) for line in ordered(lines)]
        return f"{BEFORE} {', '.join(texts) or NOTHING}"

    def _line(self, line: Line, shape: tuple[int, int]) -> str:
        text = " ".join(line.text.replace(IMAGE, " ").split())
        if not self.places:
            return text
        sides = (shape[1], shape[0], shape[1], shape[0])
        return f"{text} <{' '.join(str(round(100 * edge / side)) for edge, side in zip(line.box, sides, strict=True))}>"


def ordered(lines: Sequence[Line]) -> list[Line]:
    """Lines in reading order: rows from top to bottom, in each row from left to right. A line belongs to a row if its middle lies
    between the top and the bottom of the row's first line.
    """
    rows: list[list[Line]] = []
    for line in sorted(lines, key=lambda line: (line.box[1] + line.box[3]) / 2):
        middle = (line.box[1] + line.box[3]) / 2
        if rows and rows[-1][0].box[1] <= middle < rows[-1][0].box[3]:
            rows[-1].append(line)
        else:
            rows.append([line])
    return [line for row in rows for line in sorted(row, key=lambda line: line.box[0])]


def told(turns: Sequence[Turn], texts: Sequence[str]) -> list[Turn]:
    """A conversation with the words of its pictures, behind each run of images. texts: of each picture, in the order in which they
    are shown.
    """
    waiting = iter(texts)

    def with_words(images: re.Match[str]) -> str:
        """A run of images, and a line for each."""
        lines = islice(waiting, images[0].count(IMAGE))
        return "\n".join([images[0].rstrip(), *lines]) + "\n" * (images.end() < len(images.string))

    return [Turn(turn.role, re.sub(rf"(?:{IMAGE}\s*)+", with_words, turn.text)) for turn in turns]


def open_prompt(given: Any, source: str = "") -> OcrPrompt | None:
    """From the option ``reader`` of the field ``turns``: a kind, or {kind: …} with the options of that kind and of ``OcrPrompt``;
    None for none. source: the address of the training data. DiptychError for an unknown kind or option.
    """
    if not given:
        return None
    options = dict(given) if isinstance(given, Mapping) else {"kind": given}
    kind = options.pop("kind", None)
    if not isinstance(kind, str):
        raise DiptychError(f"{WHERE}: expected a kind of reader ({', '.join(READERS)}, package.module:name), got {given!r}")
    of_prompt = {name: options.pop(name) for name in ("places", "most") if name in options}
    made = resolve(kind, READERS, "reader")
    if inspect.isclass(made):
        if kind == "truth" and "source" not in options:
            options["source"] = source
        made = made(**check_options(made, options, WHERE))
    elif options:
        raise DiptychError(f"{WHERE}: the function {kind} takes no options, got {', '.join(options)}")
    reader = (
        made if isinstance(made, Reader) or hasattr(made, "of_sample") else Called(made.read if hasattr(made, "read") else made)
    )
    return OcrPrompt(reader, **check_options(OcrPrompt, of_prompt, WHERE))
