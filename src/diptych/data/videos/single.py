"""One clip by itself: a file, an animated picture or a folder of numbered pictures, as ``video:`` would read it."""

from __future__ import annotations

import io
from pathlib import Path

from diptych.data.clips import Frames, clip_array
from diptych.data.source import BrokenItem
from diptych.data.sources.video import CLIPS, frame_folders
from diptych.data.video import WITH_PILLOW, decode_animation, decode_frames, decode_video
from diptych.data.videos.sampling import Sampling

SIZE, FPS = 448, 25.0  # as in ``video:``


def frames_in(folder: Path) -> list[Path]:
    """The pictures of a folder that is one clip, in order; empty if it is not: pictures with numbers at the end of their names, two
    or more, and nothing else.
    """
    names = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    return [folder.parent / path for path in frame_folders([f"{folder.name}/{name}" for name in names]).get(folder.name, [])]


def clips_in(place: Path) -> list[Path]:
    """The clips that a path names: a file, a folder of frames, or all clips below a folder, in order of their names. Empty if there
    are none.
    """
    if place.is_file():
        return [place] if place.name.lower().endswith(CLIPS) else []
    if frames_in(place):
        return [place]
    below = [p for p in place.rglob("*") if (p.is_dir() and frames_in(p)) or (p.is_file() and p.name.lower().endswith(CLIPS))]
    return sorted(below)


def read_clip(path: Path, sampling: Sampling | None = None, size: int = SIZE, fps: float = FPS) -> Frames:
    """The clip in a file or a folder of frames: uint8 [frames, height, width, 3] with ``seconds``.

    sampling: which frames are kept, as in ``video:``; None: 32 in equal parts. size: the shorter side of larger frames. fps: of a
    folder of frames. Raises ``BrokenItem`` for what is not a clip or cannot be read.
    """
    item, how = str(path), sampling or Sampling()
    try:
        if path.is_dir():
            pictures = frames_in(path)
            if not pictures:
                raise BrokenItem(item, "a folder that is not one clip: expected pictures with a number at the end of their names")
            video = decode_frames(lambda i: pictures[i].read_bytes(), [p.name for p in pictures], item, how, size, fps)
        elif path.name.lower().endswith(WITH_PILLOW):
            video = decode_animation(path.read_bytes(), item, how, size)
        else:
            video = decode_video(lambda: str(path), item, how, size)
    except OSError as error:
        raise BrokenItem(item, str(error.strerror or error)) from error
    return clip_array(video, item)


def clip_from(data: bytes, item: str, sampling: Sampling | None = None, size: int = SIZE) -> Frames:
    """As ``read_clip``, from the bytes of a file: what counts is how they begin (``form_of``). No other kind is tried, since FFmpeg
    also reads lists of files, which would be opened.
    """
    how, form = sampling or Sampling(), form_of(data, item)
    if form == "picture":
        video = decode_animation(data, item, how, size)
    else:
        video = decode_video(lambda: io.BytesIO(data), item, how, size, form=form)
    return clip_array(video, item)


def form_of(data: bytes, item: str) -> str:
    """What the bytes of a file are: the container by FFmpeg's name, or ``picture`` of a GIF or WebP. ``BrokenItem`` for anything
    else.
    """
    if data[:4] == b"GIF8" or (data[:4] == b"RIFF" and data[8:12] == b"WEBP"):
        return "picture"
    if data[4:8] == b"ftyp" or data[4:8] in (b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "mov"
    if data[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "avi"
    raise BrokenItem(item, "not MP4, MOV, WebM, Matroska, AVI, GIF or WebP")


def animated(data: bytes) -> bool:
    """Whether bytes are a GIF or WebP of two pictures or more."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("GIF", "WEBP")) as image:
            return getattr(image, "n_frames", 1) > 1
    except Exception:  # decoders of hostile data raise anything; what it is decides its decoder
        return False
