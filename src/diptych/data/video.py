"""Files to clips: at most ``frames`` frames, evenly spread; the others are not kept in memory.

Frames are uint8 arrays [height, width, 3], RGB, upright; times are seconds from the first frame of the file.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import numpy as np

from diptych.core.extras import need
from diptych.core.sample import Video
from diptych.data.fields.video import spread
from diptych.data.image import MAX_PIXELS, decode, shrink, to_rgb
from diptych.data.source import BrokenItem

WITH_PYAV = (".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v")
WITH_PILLOW = (".gif", ".webp")  # animated pictures
SHARE = 0.95  # of the frames that a file announces: with fewer, it is truncated


def decode_video(open_file: Callable[[], str | BinaryIO], item: str, frames: int, size: int) -> Video:
    """``frames`` frames of a video file by PyAV, or all if there are not more; the same ones every time.

    open_file: gives the path or the open file, twice. size: the shorter side of larger frames. A first pass reads the packets for
    their times, without decoding; a second one decodes, from the last key frame before each frame that is wanted. Raises
    ``BrokenItem(item, reason)`` for a file that is not a video, damaged, truncated or above ``MAX_PIXELS``, DiptychError if PyAV is
    not installed.
    """
    av = need("av", extra="video", what=f"{item}: decoding a video")
    try:
        with av.open(open_file()) as container:
            times, keys = _packets(container, item)
        with av.open(open_file()) as container:
            found = _frames(container, times, keys, frames, size, item)
    except BrokenItem:
        raise
    except (av.FFmpegError, OSError, ValueError) as error:
        raise BrokenItem(item, f"cannot be decoded: {error}") from error
    if len(found.frames) < min(frames, len(times)):
        raise BrokenItem(item, f"damaged: {len(found.frames)} of {min(frames, len(times))} frames can be decoded")
    return found


def _packets(container: Any, item: str) -> tuple[list[int], list[int]]:
    """When each frame is shown, in the stream's own unit, in order; and the times of key frames. Without times: numbers from 0, and
    no key frames.
    """
    if not container.streams.video:
        raise BrokenItem(item, "holds no video stream")
    stream = container.streams.video[0]
    if stream.width * stream.height > MAX_PIXELS:
        raise BrokenItem(item, f"{stream.width} × {stream.height} pixels, above the limit of {MAX_PIXELS:,}")
    times: list[int | None] = []
    keys: list[int] = []
    count = 0
    for packet in container.demux(stream):
        if not packet.size:
            continue
        count += 1
        if not packet.is_discard:
            times.append(packet.pts)
            if packet.is_keyframe and packet.pts is not None:
                keys.append(packet.pts)
    if not times:
        raise BrokenItem(item, "holds no frames")
    if count < SHARE * stream.frames:
        raise BrokenItem(item, f"truncated: {count} of {stream.frames} frames")
    known = [t for t in times if t is not None]
    return (sorted(known), sorted(keys)) if len(known) == len(times) else (list(range(len(times))), [])


def _frames(container: Any, times: list[int], keys: list[int], frames: int, size: int, item: str) -> Video:
    stream = container.streams.video[0]
    wanted = [times[i] for i in spread(len(times), frames)]
    unit = float(stream.time_base) if keys else 1 / float(stream.average_rate or 25)
    pictures: list[np.ndarray] = []
    decoded, now = _decoding(container, stream, not keys), None
    for target in wanted:
        key = keys[bisect_right(keys, target) - 1] if keys and keys[0] <= target else None
        if key is not None and (now is None or key > now) and key > times[0]:
            container.seek(key, stream=stream)
            decoded = _decoding(container, stream, False)
        for time, frame in decoded:
            now = time
            if time >= target:
                pictures.append(_picture(frame, size))
                break
        else:
            break
    return Video(pictures, [round((t - times[0]) * unit, 6) for t in wanted[: len(pictures)]])


def _decoding(container: Any, stream: Any, count: bool) -> Any:
    """Decoded frames with their times, or with numbers from 0."""
    return ((i if count or frame.pts is None else frame.pts, frame) for i, frame in enumerate(container.decode(stream)))


def _picture(frame: Any, size: int) -> np.ndarray:
    scale = min(1.0, size / min(frame.height, frame.width))
    height, width = (max(1, round(side * scale)) for side in (frame.height, frame.width))
    pixels = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA")
    turns = round(getattr(frame, "rotation", 0) / 90) % 4  # by the file's display matrix, anticlockwise
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def decode_animation(data: bytes, item: str, frames: int, size: int) -> Video:
    """As ``decode_video``, of an animated GIF or WebP by Pillow. A picture that does not move is a ``BrokenItem``."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("GIF", "WEBP")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BrokenItem(item, f"{image.width} × {image.height} pixels, above the limit of {MAX_PIXELS:,}")
            count = getattr(image, "n_frames", 1)
            if count < 2:
                raise BrokenItem(item, "a single picture, not a clip")
            wanted = set(spread(count, frames))
            pictures, seconds, now = [], [], 0.0
            for number in range(count):
                image.seek(number)
                image.load()
                if number in wanted:
                    pictures.append(shrink(to_rgb(image), size))
                    seconds.append(round(now, 6))
                now += (image.info.get("duration") or 100) / 1000
    except BrokenItem:
        raise
    except Exception as error:  # decoders of hostile data raise anything
        raise BrokenItem(item, f"cannot be decoded: {error}") from error
    return Video(pictures, seconds)


def decode_frames(read: Callable[[int], bytes], names: Sequence[str], item: str, frames: int, size: int, fps: float) -> Video:
    """As ``decode_video``, of pictures in order, ``fps`` a second. read: the encoded picture of a number; the others are not
    read.
    """
    chosen = spread(len(names), frames)
    pictures = [shrink(decode(read(i), f"{item}/{names[i]}"), size) for i in chosen]
    if len({p.shape for p in pictures}) > 1:
        raise BrokenItem(item, "frames of different sizes")
    return Video(pictures, [round(i / fps, 6) for i in chosen])
