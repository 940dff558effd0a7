"""The size of the picture from the header of its file; nothing is decoded."""

from __future__ import annotations

import io
from dataclasses import dataclass

import pyarrow as pa

from diptych.curation.operators.base import Columns, Operator, RowError


@dataclass(frozen=True, kw_only=True)
class ImageSize(Operator):
    """Width, height and shorter side in pixels, the aspect (longer side / shorter side), and the file's size in bytes."""

    name = "image_size"
    inputs = ("image",)
    outputs = {  # noqa: RUF012 - declared, never changed
        "width": pa.int32(),
        "height": pa.int32(),
        "shorter_side": pa.int32(),
        "aspect": pa.float64(),
        "file_bytes": pa.int64(),
    }

    def compute(self, batch: pa.RecordBatch) -> Columns:
        """The outputs for the rows of ``batch``, which holds ``row``, ``id``, ``hash`` and the declared inputs."""
        files = [scalar.as_buffer() for scalar in batch["image"]]
        sizes = [_size(file) for file in files]
        return {
            "width": [w for w, _ in sizes],
            "height": [h for _, h in sizes],
            "shorter_side": [min(size) for size in sizes],
            "aspect": [max(size) / min(size) for size in sizes],
            "file_bytes": [file.size for file in files],
        }


def _size(file: pa.Buffer) -> tuple[int, int]:
    """Width and height as displayed: swapped if the Exif data rotates the picture."""
    from PIL import Image, UnidentifiedImageError

    from diptych.data.image import FORMATS

    try:
        with Image.open(io.BytesIO(file), formats=FORMATS) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except UnidentifiedImageError as error:
        raise RowError(f"not an image (starts with {bytes(file[:12])!r})") from error
    except Exception as error:  # headers of malicious files raise anything
        raise RowError(f"the image cannot be read: {error}") from error
    return (height, width) if turned else (width, height)
