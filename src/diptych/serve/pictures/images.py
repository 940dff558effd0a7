"""Pictures in requests: data URLs, and addresses of the internet if the server was started so.

What counts is what the bytes are, not what the URL says that they are. The size is read from the header before any pixel.
"""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

import numpy as np

from diptych.data.image import decode
from diptych.data.source import BrokenItem
from diptych.serve.errors import ApiError
from diptych.serve.settings import Settings

if TYPE_CHECKING:
    from diptych.serve.pools import Pool
    from diptych.serve.state import State

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")  # no TIFF, PPM or SVG: browsers and programs send these


def picture_of(url: str, settings: Settings, param: str = "image") -> np.ndarray:
    """The picture at a ``data:`` or ``http(s):`` URL, uint8 [height, width, 3]. ApiError 400 for one that is not used."""
    if url[:5].lower() == "data:":
        return pixels(bytes_of(url, param), settings, param)
    if url[:8].lower().startswith(("http://", "https://")):
        if not settings.allow_urls:
            raise ApiError(
                400, "this server fetches no pictures from addresses; send a data: URL, or start it with --allow-urls", param
            )
        from diptych.serve.pictures.fetch import fetched

        return pixels(fetched(url, settings.max_body, param), settings, param)
    raise ApiError(400, "expected a picture as a data: URL, such as data:image/png;base64,…", param)


def pictures_of(urls: Sequence[tuple[str, str]], settings: Settings) -> list[np.ndarray]:
    """The pictures of one request, from their URLs and the names of their parameters. ApiError 400 if they have more than twice as
    many pixels together as one may have: small files can be large pictures.
    """
    left, result = 2 * settings.max_pixels, []
    for url, param in urls:
        image = picture_of(url, settings, param)
        left -= image.shape[0] * image.shape[1]
        if left < 0:
            raise ApiError(400, f"the pictures of one request may have {2 * settings.max_pixels:,} pixels together", param)
        result.append(image)
    return result


def pool_of(urls: Iterable[str], state: State) -> Pool:
    """The threads in which these pictures are read: decoding takes the processor, fetching waits."""
    return state.fetching if any(url[:5].lower() != "data:" for url in urls) else state.decoding


def bytes_of(url: str, param: str = "image") -> bytes:
    """What a data URL holds."""
    head, comma, content = url.partition(",")
    if not comma:
        raise ApiError(400, "a data: URL needs a comma before its content", param)
    kind, *options = head[5:].lower().split(";")
    if "svg" in kind:
        raise ApiError(400, "SVG is not read: it is a program for drawing, not a picture; send PNG or JPEG", param)
    if "base64" not in (option.strip() for option in options):
        return unquote_to_bytes(content)
    try:
        return base64.b64decode("".join(content.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, "the content of the data: URL is not base64", param) from None


def pixels(data: bytes, settings: Settings, param: str = "image") -> np.ndarray:
    """Decoded, upright, on white. ApiError 400 for anything but a picture within the limits."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as opened:
                width, height, form = *opened.size, opened.format
    except Image.DecompressionBombError:
        raise ApiError(400, f"the picture has more than {settings.max_pixels:,} pixels", param) from None
    except Exception:
        raise ApiError(400, "the picture cannot be decoded: send JPEG, PNG, WebP or GIF", param) from None
    if form not in FORMATS:
        raise ApiError(400, f"a picture of the format {form}; send JPEG, PNG, WebP or GIF", param)
    if width * height > settings.max_pixels:
        raise ApiError(400, f"the picture has {width} × {height} pixels; the limit is {settings.max_pixels:,}", param)
    try:
        return decode(data, "picture")
    except BrokenItem as broken:
        raise ApiError(400, f"the picture cannot be decoded: {broken.problem.reason}"[:300], param) from None


def cropped(image: np.ndarray, box: list[float], param: str = "crop") -> np.ndarray:
    """The part within ``box``: left, top, right, bottom, each as a share of the picture."""
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
        raise ApiError(400, "expected [left, top, right, bottom] from 0 to 1, with left < right and top < bottom", param)
    height, width = image.shape[:2]
    left, top = min(int(x0 * width), width - 1), min(int(y0 * height), height - 1)
    right, bottom = max(left + 1, round(x1 * width)), max(top + 1, round(y1 * height))
    return np.ascontiguousarray(image[top:bottom, left:right])
