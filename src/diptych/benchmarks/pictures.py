"""The images that a benchmark's files name or hold: paths, bytes, base64 and parts of images."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.core.capabilities import Image
from diptych.core.errors import DiptychError
from diptych.data.image import SUFFIXES, as_pixels
from diptych.data.storage import files


@dataclass(frozen=True)
class Crop:
    """A part of an image file. ``box``: x, y, width, height in pixels."""

    path: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Clip:
    """A clip: a file or a folder of frames, or the part of it from ``start`` to before ``end``, in seconds. frames: at most so many
    are read, the middle ones of equal parts; size: the shorter side of larger frames; fps: of a folder of frames.
    """

    path: str
    start: float | None = None
    end: float | None = None
    frames: int = 16
    size: int = 224
    fps: float = 3.0


ImageRef = Image | str | bytes | Crop | Clip  # pixels, the path of a file, the bytes of a file, a part of a file, or a clip


def load_image(image: ImageRef, item: str) -> Image:
    """The pixels, uint8 [height, width, 3], of a clip [frames, height, width, 3]. Raises DiptychError, naming the item, for an
    image that cannot be read, and ``BrokenItem`` for such a clip.
    """
    if isinstance(image, Clip):
        from diptych.data.videos.sampling import Sampling
        from diptych.data.videos.single import read_clip

        within = None if image.start is None or image.end is None else (image.start, image.end)
        return read_clip(Path(image.path), Sampling(image.frames, within=within), image.size, image.fps)
    if isinstance(image, Crop):
        x, y, width, height = image.box
        part = load_image(image.path, item)[max(0, y) : y + height, max(0, x) : x + width]
        if not part.size:
            raise DiptychError(f"{image.path} of item {item}: the box {image.box} lies outside the picture")
        return part
    return as_pixels(image, item)


def embedded(value: Any, where: str) -> bytes:
    """The bytes of an image in a cell: as such, as ``{"bytes": …}``, or in base64."""
    if isinstance(value, dict):
        value = value.get("bytes")
    if isinstance(value, bytes):
        return value
    try:
        return base64.b64decode(str(value).partition("base64,")[2] or str(value), validate=True)
    except ValueError:
        raise DiptychError(f"{where}: field 'image': expected a picture in base64") from None


class Pictures:
    """Finds image files by the names in a benchmark: in ``directory``, or next to the benchmark's ``file`` and in ``images/``
    there."""

    def __init__(self, directory: str, file: str):
        self.places = [directory] if directory else [files.parent(file), files.join(files.parent(file), "images")]
        self.file = file

    def path(self, name: str, where: str = "") -> str:
        """The path of an image; the name may be given without suffix. Raises DiptychError if there is no such file."""
        for place in self.places:
            for ending in ("", *SUFFIXES) if "." not in name[-5:] else ("",):
                if files.exists(path := files.join(place, f"{name}{ending}")):
                    return path
        places = " or ".join(self.places)
        raise DiptychError(f"{where or self.file}: there is no picture '{name}' in {places}; name the folder: &images=DIRECTORY")


class NoPictures(Pictures):
    """Replaces ``Pictures`` where predictions in files are scored: image files need not exist."""

    def __init__(self) -> None:
        super().__init__("", "")

    def path(self, name: str, where: str = "") -> str:
        """The path of an image; the name may be given without suffix."""
        return name
