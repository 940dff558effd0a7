"""Clips with the number of each frame painted into its pixels, and clips that are damaged or odd: what tests of files share."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

HEIGHT, WIDTH, BITS = 48, 80, 10
CODECS = {"mp4": "mpeg4", "mov": "mpeg4", "avi": "mpeg4", "mkv": "libx264", "webm": "libvpx"}


def painted(k: int) -> np.ndarray:
    """A frame that shows its number: ten black or white squares, the lowest bit first."""
    frame = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    for bit in range(BITS):
        y, x = 24 * (bit // 5), 16 * (bit % 5)
        frame[y : y + 24, x : x + 16] = 235 if k >> bit & 1 else 16
    return frame


def number(frame: np.ndarray) -> int:
    """The number that a frame shows, whatever its size."""
    height, width = frame.shape[:2]
    bits = 0
    for bit in range(BITS):
        y, x = int((bit // 5 + 0.5) * height / 2), int((bit % 5 + 0.5) * width / 5)
        bits |= int(frame[y - 2 : y + 2, x - 2 : x + 2].mean() > 128) << bit
    return bits


def numbers(video: Any) -> list[int]:
    return [number(frame) for frame in video.frames]


def write(
    path: Path, n: int = 60, fps: int = 10, gop: int = 12, times: list[int] | None = None, codec: str = "", **more: Any
) -> str:
    """A clip of n frames that show 0 … n − 1. times: when each is shown, in 1 / (100 · fps) s; more: ``rotation`` in degrees,
    ``options`` of the container, ``bframes``."""
    import av

    kind = path.suffix[1:]
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=more.get("options", {})) as container:
        stream = container.add_stream(codec or CODECS[kind], rate=fps)
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = HEIGHT, WIDTH, "yuv420p", gop
        stream.bit_rate = 2_000_000
        stream.codec_context.max_b_frames = more.get("bframes", 0)
        stream.time_base = stream.codec_context.time_base = Fraction(1, 100 * fps)
        if "rotation" in more:
            stream.set_display_rotation(more["rotation"])
        for k in range(n):
            frame = av.VideoFrame.from_ndarray(painted(k), "rgb24")
            frame.pts, frame.time_base = (100 * k if times is None else times[k]), Fraction(1, 100 * fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


def sound(path: Path, cover: bool = False) -> None:
    """A file without video; cover: with a picture, as music has it."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        if cover:
            picture = container.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
            container.mux(picture.encode(av.VideoFrame.from_ndarray(painted(0), "rgb24").reformat(format="yuvj420p")))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def patched(path: Path, mark: bytes, offset: int, form: str, value: int) -> None:
    """Write a number into a file, ``offset`` bytes after a mark."""
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, data.index(mark) + offset, value)
    path.write_bytes(bytes(data))
