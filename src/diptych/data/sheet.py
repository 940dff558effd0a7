"""Contact sheets: pictures with their captions, to look at."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from diptych.core.errors import DiptychError
from diptych.core.sample import Sample

_PAPER, _INK, _FAINT, _MARK = (250, 249, 246), (32, 34, 40), (112, 116, 126), (225, 40, 120)


def font(points: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    try:
        from matplotlib import get_data_path

        return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), points)
    except (ImportError, OSError):
        return ImageFont.load_default(points)


def _fitted(sample: Sample, side: int, boxes: bool) -> Image.Image:
    """The picture in a square of ``side`` pixels, with its own proportions; small pictures keep their pixels crisp."""
    tile = Image.new("RGB", (side, side), (236, 234, 228))
    if sample.image is None:
        return tile
    picture = Image.fromarray(sample.image).convert("RGB")
    scale = side / max(picture.size)
    small = scale >= 2
    width, height = (max(1, round(length * scale)) for length in picture.size)
    picture = picture.resize((width, height), Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)
    if boxes:
        draw = ImageDraw.Draw(picture)
        for found in sample.extra.get("boxes", ()):
            x0, y0, x1, y1 = (round(edge * scale) for edge in found["box"])
            draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=_MARK, width=2)
    tile.paste(picture, ((side - width) // 2, (side - height) // 2))
    return tile


def contact_sheet(
    samples: Iterable[Sample],
    path: str | Path,
    columns: int = 4,
    side: int = 240,
    captions: int = 3,
    boxes: bool = False,
    title: str = "",
) -> Path:
    """Draws samples of any source and size as one PNG, each under its own picture with its first few captions."""
    if Path(path).suffix.lower() not in Image.registered_extensions():
        raise DiptychError(f"{path}: no kind of picture; end the name in .png")
    samples = list(samples)
    columns = max(1, min(columns, len(samples)))
    gap, leading, plain, heading = 18, 17, font(13), font(20)
    letters = max(12, int(side / 7.4))
    wrapped = [[textwrap.wrap(text, letters) or [""] for text in sample.captions[:captions]] for sample in samples]
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
            sheet.paste(_fitted(samples[index], side, boxes), (x, y))
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
