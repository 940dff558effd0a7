"""Decodes one clip in a process of its own: ``python -m diptych.serve.pictures.clip_process LIMITS < FILE``.

A file from elsewhere may be made to take endless time or memory, or to end the decoder: this process is ended instead of the
server. On stdout: one line of JSON, ``{"shape", "seconds"}`` and then the frames, uint8, or ``{"problem"}``.
"""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import numpy as np

from diptych.core.extras import need
from diptych.data.source import BrokenItem
from diptych.data.videos.sampling import Sampling
from diptych.data.videos.single import clip_from, form_of

MEMORY = 4 << 30  # bytes of addresses, code and all
MOST = 100_000  # frames of a file


def limited(data: bytes, limits: dict[str, Any]) -> np.ndarray:
    """The frames that are kept, uint8 [n, height, width, 3]. limits: ``frames`` and ``size`` of the result; ``pixels`` and
    ``seconds`` of the clip, known from its header before anything is decoded. Raises ``BrokenItem``.
    """
    form = form_of(data, "clip")
    if form == "picture":
        from PIL import Image

        with Image.open(io.BytesIO(data), formats=("GIF", "WEBP")) as image:
            width, height, seconds, count = *image.size, 0.0, getattr(image, "n_frames", 1)
    else:
        av = need("av", extra="video", what="decoding a clip")
        with av.open(io.BytesIO(data), format=form) as container:
            if not container.streams.video:
                raise BrokenItem("clip", "holds no video stream")
            stream = container.streams.video[0]
            width, height, count, seconds = stream.width, stream.height, stream.frames, (container.duration or 0) / 1e6
    if width * height > limits["pixels"]:
        raise BrokenItem("clip", f"{width} × {height} pixels; the limit is {limits['pixels']:,}")
    if seconds > limits["seconds"] or count > MOST:
        raise BrokenItem("clip", f"{seconds:g} s long; the limit is {limits['seconds']:g} s")
    return clip_from(data, "clip", Sampling(limits["frames"]), limits["size"])


def main() -> None:
    """Reads stdin, writes stdout."""
    limits = json.loads(sys.argv[1])
    try:
        import resource
    except ImportError:  # not on Windows
        pass
    else:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (int(limits["cpu"]), int(limits["cpu"])))
    out = sys.stdout.buffer
    try:
        clip = limited(sys.stdin.buffer.read(), limits)
    except BrokenItem as broken:
        out.write(json.dumps({"problem": broken.problem.reason}).encode() + b"\n")
    except (MemoryError, Exception) as error:  # decoders of hostile data raise anything
        out.write(json.dumps({"problem": f"cannot be decoded: {type(error).__name__}"}).encode() + b"\n")
    else:
        seconds = [float(s) for s in getattr(clip, "seconds", [])]
        out.write(json.dumps({"shape": clip.shape, "seconds": seconds}).encode() + b"\n")
        out.write(np.ascontiguousarray(clip).tobytes())


if __name__ == "__main__":
    main()
