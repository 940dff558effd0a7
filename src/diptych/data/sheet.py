"""Contact sheets: samples with what each of their fields shows, to look at."""

from __future__ import annotations

import colorsys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diptych.core.errors import DiptychError
from diptych.core.sample import Region, Sample
from diptych.data.fields import FIELDS

_PAPER, _INK, _FAINT, _MARK, _TILE = (250, 249, 246), (32, 34, 40), (112, 116, 126), (225, 40, 120), (236, 234, 228)
Boxes = Sequence[tuple[Sequence[float], str]]  # edges in pixels, and a phrase
_EDGE = 0.75  # how much of its colour is mixed into the edge of a mask


def font(points: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu Sans of that size if matplotlib is installed, otherwise Pillow's own font."""
    try:
        from matplotlib import get_data_path

        return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), points)
    except (ImportError, OSError):
        return ImageFont.load_default(points)


def _fitted(image: np.ndarray, side: int, boxes: Boxes = ()) -> Image.Image:
    """The picture in a square of ``side`` pixels, with its own proportions; small pictures keep their pixels crisp."""
    tile = Image.new("RGB", (side, side), _TILE)
    picture = Image.fromarray(image).convert("RGB")
    scale = side / max(picture.size)
    small = scale >= 2
    width, height = (max(1, round(length * scale)) for length in picture.size)
    picture = picture.resize((width, height), Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(picture)
    for edges, phrase in boxes:
        x0, y0, x1, y1 = (round(edge * scale) for edge in edges)
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=_MARK, width=2)
        if phrase:
            draw.text((x0 + 4, y0 + 2), phrase[:24], fill=_MARK, font=font(11), stroke_width=1, stroke_fill=_PAPER)
    tile.paste(picture, ((side - width) // 2, (side - height) // 2))
    return tile


def _tiled(pictures: Sequence[np.ndarray], side: int) -> Image.Image:
    """Several pictures in a square of ``side`` pixels, in rows from left to right."""
    across = next(n for n in range(1, len(pictures) + 1) if n * n >= len(pictures))
    tile, cell = Image.new("RGB", (side, side), _TILE), side // across
    for k, picture in enumerate(pictures):
        tile.paste(_fitted(picture, cell - 2), (k % across * cell, k // across * cell))
    return tile


def _shown(sample: Sample, side: int, captions: int, boxes: bool) -> tuple[Image.Image, list[str]]:
    """A square with the sample's pictures, and the lines below it. Fields other than captions and boxes are drawn by
    ``Field.draw``.
    """
    lines = sample.captions[:captions]
    pictures: list[np.ndarray] = []
    for name, value in sample.fields.items():
        if name in ("image", "text", "negatives", "regions") or name not in FIELDS:
            continue
        drawn: list[Any] = FIELDS[name].draw(value)
        pictures += [part for part in drawn if not isinstance(part, str)]
        texts = [part for part in drawn if isinstance(part, str)]
        if name != "document" or not sample.captions:  # the caption already holds a document's texts
            lines = [*lines, *(f"{name}: {text}" for text in texts[: captions + 1])]
    if sample.image is not None:
        regions = _regions(sample)
        marked: list[tuple[Sequence[float], str]] = [(r.box, r.phrase) for r in regions]
        if boxes:
            marked += [(result["box"], "") for result in sample.extra.get("boxes", ())]
        return _fitted(outlined(sample.image, regions), side, marked), lines
    return (_tiled(pictures, side) if pictures else Image.new("RGB", (side, side), _TILE)), lines


def outlined(image: np.ndarray, regions: Sequence[Region]) -> np.ndarray:
    """The picture with the edges of the regions' masks in colours, each in one of its own; what is inside keeps its colour. The
    picture itself if none has a mask.
    """
    masks = [r.mask for r in regions if r.mask is not None and np.shape(r.mask) == image.shape[:2]]
    if not masks:
        return image
    result = image.astype(np.float32)
    for number, mask in enumerate(masks):
        around = np.pad(mask, 1)
        inner = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
        edge = mask & ~inner
        red, green, blue = colorsys.hsv_to_rgb(number * 0.618 % 1, 0.9, 1.0)
        result[edge] = (1 - _EDGE) * result[edge] + _EDGE * 255 * np.array((red, green, blue), np.float32)
    return result.astype(np.uint8)


def _regions(sample: Sample) -> list[Region]:
    result: list[Region] = sample.fields.get("regions", [])
    return result


def contact_sheet(
    samples: Iterable[Sample],
    path: str | Path,
    columns: int = 4,
    side: int = 240,
    captions: int = 3,
    boxes: bool = False,
    title: str = "",
) -> Path:
    """Draws samples of any source and size as one PNG: each one's picture with its regions, or its frames or the pictures of its
    document side by side; below it the first few captions, and what its other fields say.

    side: of the square for a sample, in pixels. captions: how many at most. boxes: show those of ``extra["boxes"]`` too. Returns
    the path; DiptychError for an ending that is not one of pictures.
    """
    if Path(path).suffix.lower() not in Image.registered_extensions():
        raise DiptychError(f"{path}: not the name of a picture file; end it in .png")
    samples = list(samples)
    columns = max(1, min(columns, len(samples)))
    gap, leading, plain, heading = 18, 17, font(13), font(20)
    letters = max(12, int(side / 7.4))
    shown = [_shown(sample, side, captions, boxes) for sample in samples]
    wrapped = [[textwrap.wrap(text, letters) or [""] for text in lines] for _, lines in shown]
    rows = [range(first, min(first + columns, len(samples))) for first in range(0, len(samples), columns)]
    text_heights = [max(sum(len(lines) * leading + 5 for lines in wrapped[i]) for i in row) for row in rows]
    top = gap + (38 if title else 0)
    height = top + sum(side + 8 + text + gap for text in text_heights)
    sheet = Image.new("RGB", (gap + columns * (side + gap), height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((gap, gap), title, fill=_INK, font=heading)
    for row, text_height in zip(rows, text_heights, strict=True):
        for column, index in enumerate(row):
            x, y = gap + column * (side + gap), top
            sheet.paste(shown[index][0], (x, y))
            y += side + 8
            for number, lines in enumerate(wrapped[index]):
                for line in lines:
                    draw.text((x, y), line, fill=_FAINT if number else _INK, font=plain)
                    y += leading
                y += 5
        top += side + 8 + text_height + gap
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path
