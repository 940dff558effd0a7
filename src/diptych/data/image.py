"""From bytes to pixels, and from pixels to the square that a model reads.

Images are uint8 arrays [height, width, 3], RGB. Colour profiles are not applied.
"""

from __future__ import annotations

import io
import math
import random
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from diptych.core.errors import DiptychError
from diptych.data.source import BrokenItem
from diptych.data.storage import files

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 100_000_000  # beyond this a file is refused from its header: 300 MB of pixels from a few kB of data
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # no EPS or PDF: those would run Ghostscript
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
UNREAD = {  # suffixes of pictures that are not decoded, and what they are
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIC"),
    **dict.fromkeys((".jp2", ".j2k", ".jpx"), "JPEG 2000"),
    **dict.fromkeys((".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf"), "a camera's raw data"),
    ".jxl": "JPEG XL",
    ".psd": "a Photoshop document",
    ".svg": "a drawing",
    ".tga": "TGA",
    ".ico": "an icon",
}
CONVERT = "is not read: convert it to JPEG or PNG, such as by `magick mogrify -format jpg FILE`"


def decode(data: bytes, item: str) -> np.ndarray:
    """The upright RGB picture in ``data``, uint8 [height, width, 3]; transparent parts become white.

    Raises ``BrokenItem(item, reason)`` for data that is empty, not an image, truncated, damaged or above ``MAX_PIXELS``.
    """
    if not data:
        raise BrokenItem(item, "the file is empty")
    pixels = _decode_plain_jpeg(data, item) if data[:3] == b"\xff\xd8\xff" else None
    return pixels if pixels is not None else _decode_any(data, item)


def _decode_plain_jpeg(data: bytes, item: str) -> np.ndarray | None:
    """The fast path: an upright RGB or grey JPEG. ``None`` for all others, which Pillow decodes."""
    import simplejpeg

    if b"Exif\0" in data[:65536]:  # may be rotated; only Pillow reads the orientation
        from PIL import Image

        try:
            with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
                if image.getexif().get(0x0112, 1) != 1:
                    return None
        except Exception:
            return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(width, height, item)
        if colours in ("CMYK", "YCCK"):
            return None
        pixels: np.ndarray = simplejpeg.decode_jpeg(data, "RGB")
        return pixels
    except ValueError as error:
        if "remature end" in str(error):
            raise BrokenItem(item, "truncated: the file ends before the picture does") from error
        return None  # the strict decoder also refuses minor damage that loses no pixels


@cache
def _formats() -> tuple[str, ...]:
    """``FORMATS``, and AVIF where Pillow has it (from 11.3 on)."""
    try:
        from PIL import AvifImagePlugin, features
    except ImportError:
        return FORMATS
    return (*FORMATS, AvifImagePlugin.AvifImageFile.format or "AVIF") if features.check("avif") else FORMATS


def _why_unknown(data: bytes) -> str:
    """Why bytes are not decoded, from their beginning."""
    brands = data[8:32] if data[4:8] == b"ftyp" else b""
    if b"avif" in brands or b"avis" in brands:
        return "AVIF, which this Pillow does not read: pip install -U pillow, or convert it"
    if brands[:4] in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"):
        return f"HEIC {CONVERT}"
    if data[:2] == b"\xff\x0a" or data[4:8] == b"JXL ":
        return f"JPEG XL {CONVERT}"
    if data[4:8] == b"jP  ":
        return f"JPEG 2000 {CONVERT}"
    return f"not an image (starts with {bytes(data[:12])!r})"


def _decode_any(data: bytes, item: str) -> np.ndarray:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            _check_size(*image.size, item)
            return to_rgb(ImageOps.exif_transpose(image))
    except BrokenItem:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        pixels = re.search(r"\((\d+) pixels\)", str(error))
        size = f"{int(pixels[1]):,} pixels" if pixels else "too many pixels"
        raise BrokenItem(item, f"{size}, above the limit of {MAX_PIXELS:,}") from error
    except UnidentifiedImageError as error:
        raise BrokenItem(item, _why_unknown(data)) from error
    except MemoryError:
        raise
    except Exception as error:  # decoders of hostile data raise anything from SyntaxError to struct.error
        reason = f"truncated: {error}" if "truncated" in str(error).lower() else f"cannot be decoded: {error}"
        raise BrokenItem(item, reason) from error


def _check_size(width: int, height: int, item: str) -> None:
    if width * height > MAX_PIXELS:
        raise BrokenItem(item, f"{width} × {height} pixels, above the limit of {MAX_PIXELS:,}")


def as_pixels(image: Any, item: str) -> np.ndarray:
    """The pixels of an array, a Pillow image, the path of a file or the bytes of a file: uint8 [height, width, 3].

    Raises DiptychError, naming the item, for anything else and for a file that cannot be read.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise DiptychError(f"{item}: expected uint8 pixels [height, width, 3], got {image.dtype} {list(image.shape)}")
        return image
    place = str(image) if isinstance(image, str | Path) else "picture"
    try:
        if isinstance(image, bytes):
            return decode(image, item)
        if isinstance(image, str | Path):
            return decode(files.read(place), item)
        from PIL import Image

        if isinstance(image, Image.Image):
            return to_rgb(image)
    except (BrokenItem, OSError) as error:
        raise DiptychError(f"{place} of item {error}") from error
    except ValueError as error:
        raise DiptychError(f"{item}: {error}") from error
    raise DiptychError(f"{item}: expected an array, a Pillow image or a path, got {type(image).__name__}")


def to_rgb(image: Image.Image) -> np.ndarray:
    """The picture of Pillow as uint8 [height, width, 3]; transparent parts become white. ValueError for pixels without a known
    range.

    Grey pixels of more than 8 bits do not say how many are used: cameras and scanners write 10, 12 or 14 bits into files of 16. The
    range is 8, 10, 12, 14, 16 … bits, the smallest that holds the picture's largest value.
    """
    from PIL import Image

    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode.startswith("I"):  # grey of more than 8 bits; Pillow's own conversion would clip, not scale
        wide = np.maximum(np.asarray(image).astype(np.int64), 0)
        bits = max(8, int(wide.max()).bit_length())
        grey = (wide >> (bits + bits % 2 - 8)).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def resize(image: np.ndarray, size: int, mode: Literal["crop", "squash"] = "crop") -> np.ndarray:
    """uint8 [H, W, 3] → [size, size, 3], antialiased: the central square, or (``squash``) the whole, deformed."""
    height, width = image.shape[:2]
    if mode == "squash":
        return resize_part(image, size, 0, 0, width, height)
    if mode != "crop":
        raise ValueError(f"resize mode '{mode}'; valid: crop, squash")
    side = min(height, width)
    if side == size:  # nothing to resample
        top, left = (height - side) // 2, (width - side) // 2
        return image[top : top + side, left : left + side]
    return resize_part(image, size, (width - side) / 2, (height - side) / 2, side, side)


def shrink(image: np.ndarray, size: int) -> np.ndarray:
    """The whole picture with its shorter side at ``size``, antialiased; a picture that is not larger stays as it is."""
    from PIL import Image

    height, width = image.shape[:2]
    scale = size / min(height, width)
    if scale >= 1:
        return image
    shape = (max(size, round(width * scale)), max(size, round(height * scale)))
    return np.array(Image.fromarray(image).resize(shape, Image.Resampling.BICUBIC))


def random_resized_crop(
    image: np.ndarray,
    size: int,
    rng: random.Random,
    scale: tuple[float, float] = (0.6, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> np.ndarray:
    """A random part of the picture (``scale``: share of its area; ``ratio``: width to height) → [size, size, 3].

    Never mirrored: captions say left and right.
    """
    part = random_part(image.shape[0], image.shape[1], rng, scale, ratio)
    return resize(image, size) if part is None else resize_part(image, size, *part)


def random_part(
    height: int, width: int, rng: random.Random, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int] | None:
    """Left, top, width and height of a random part of a picture, in pixels; None if the picture is too long and thin for one."""
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            return rng.randint(0, width - w), rng.randint(0, height - h), w, h
    return None


def resize_part(image: np.ndarray, size: int, x: float, y: float, width: float, height: float) -> np.ndarray:
    """The part of a picture at x, y → [size, size, 3], antialiased and, unless it is square, deformed. All in pixels."""
    from PIL import Image

    if image.shape[:2] == (size, size) == (height, width):
        return image
    box = (x, y, x + width, y + height)
    return np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC, box=box))
