"""What a command shows a model: pictures, or clips to a model that learned from clips."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.core.errors import DiptychError

if TYPE_CHECKING:
    from diptych.core.capabilities import Image

INSTEAD = "train video-llava, for one, or make pictures of its frames: ffmpeg -i CLIP -vf fps=1 frames/%04d.png"


def reads_clips(model: Any) -> bool:
    """Whether a model is shown clips."""
    return getattr(model, "shows", "image") == "video"


def is_clip(path: Path) -> bool:
    """Whether a file is a clip for any model; a GIF or WebP can also be a picture."""
    from diptych.data.video import WITH_PYAV

    return path.name.lower().endswith(WITH_PYAV)


def refuse_clip(path: Path, run: str) -> None:
    """Raises DiptychError, with the remedy, if a file is a clip: ``run`` reads pictures."""
    if is_clip(path):
        raise DiptychError(f"{path} is a clip, and {run} reads pictures: {INSTEAD}")


def check_there(places: Sequence[Path]) -> None:
    """Raises DiptychError for a path at which there is nothing."""
    for place in places:
        if not place.exists():
            raise DiptychError(f"{place}: no such file or folder")


def listed(places: Sequence[Path], run: str) -> list[Path]:
    """The pictures that paths name: files, and those below folders. Raises DiptychError for a folder without any, and for a
    clip.
    """
    from diptych.data.image import SUFFIXES

    paths: list[Path] = []
    for place in places:
        refuse_clip(place, run)
        if not place.is_dir():
            paths.append(place)
            continue
        inside = sorted(p for p in place.rglob("*") if p.is_file())
        below = [p for p in inside if p.suffix.lower() in SUFFIXES]
        if not below:
            clip = next(filter(is_clip, inside), None)
            if clip is not None:
                refuse_clip(clip, run)
            raise DiptychError(f"{place}: no images in it ({' '.join(SUFFIXES)})")
        paths += below
    return list(dict.fromkeys(paths))


def of_files(paths: Sequence[Path]) -> Iterator[tuple[str, Image | str]]:
    """Name and picture, or the reason why there is none."""
    from diptych.data.image import decode
    from diptych.data.source import BrokenItem

    for path in paths:
        try:
            yield str(path), decode(path.read_bytes(), str(path))
        except BrokenItem as broken:
            yield str(path), broken.problem.reason
        except OSError as error:
            yield str(path), str(error.strerror)


def clips_of_files(places: Sequence[Path]) -> Iterator[tuple[str, Image | str]]:
    """Name and clip, uint8 [frames, height, width, 3], or the reason why there is none. Of a path without clips the pictures, each
    a clip of one frame. Raises DiptychError for a folder with neither.
    """
    from diptych.data.source import BrokenItem
    from diptych.data.sources.video import CLIPS
    from diptych.data.videos.single import clips_in, read_clip

    for place in places:
        clips = clips_in(place)
        if not clips:
            try:
                yield from of_files(listed([place], ""))
            except DiptychError:
                raise DiptychError(f"{place}: neither clips ({' '.join(CLIPS)}, folders of numbered pictures) nor images") from None
        for path in clips:
            try:
                yield str(path), read_clip(path)
            except BrokenItem as broken:
                yield str(path), broken.problem.reason


def conversed(model: Any, run: str, places: Sequence[Path], frames: int) -> tuple[list[Image], str]:
    """What a conversation shows, one entry for each ``<image>``, and the marks before its first question: pictures; clips as they
    are to a model that reads clips, to one of several pictures as at most ``frames`` of their frames. frames: 0: the model takes
    one picture.

    Raises DiptychError, with the file and the reason, for what cannot be read, and for a clip that the model cannot be shown.
    """
    from diptych.core.sample import IMAGE
    from diptych.data.image import decode
    from diptych.data.source import BrokenItem
    from diptych.data.video import WITH_PILLOW
    from diptych.data.videos.sampling import Sampling
    from diptych.data.videos.single import animated, read_clip

    shown: list[Image] = []
    opening = ""
    for path in places:
        try:
            clip = path.is_dir() or is_clip(path) or (path.name.lower().endswith(WITH_PILLOW) and animated(path.read_bytes()))
            if not clip:
                part = [decode(path.read_bytes(), str(path))]
            elif reads_clips(model):
                part = [read_clip(path)]
            elif frames:
                part = list(read_clip(path, Sampling(frames)))
            else:
                raise DiptychError(f"{path} is a clip, and {run} reads one picture: {INSTEAD}")
        except BrokenItem as broken:
            raise DiptychError(f"{path}: {broken.problem.reason}") from None
        except OSError as error:
            raise DiptychError(f"{path}: {error.strerror}") from None
        shown += part
        opening += IMAGE * len(part) + "\n"
    return shown, opening
