"""Files to clips: the frames that a sampling chooses; the others are not kept in memory.

Frames are uint8 arrays [height, width, 3], RGB, upright; times are seconds from the first frame of the file, as the file states
them.
"""

from __future__ import annotations

import io
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from diptych.core.errors import DiptychError
from diptych.core.extras import need
from diptych.core.sample import Video
from diptych.data.image import MAX_PIXELS, decode, shrink, to_rgb
from diptych.data.source import BrokenItem
from diptych.data.videos.sampling import Sampling
from diptych.data.videos.whole import missing_bytes

WITH_PYAV = (".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v")
WITH_PILLOW = (".gif", ".webp")  # animated pictures
SHARE = 0.95  # of the frames, or of the time, that a file announces: with less, a file that was cut off is truncated
COVER = 0x400  # FFmpeg's mark of a stream that is a picture of its own (AV_DISPOSITION_ATTACHED_PIC)

Opening = Callable[[], "str | BinaryIO"]


@dataclass
class Times:
    """When each frame of a stream is shown, in order, in the stream's own unit; without times in the file, numbers from 0."""

    shown: array[int]
    keys: array[int] = field(default_factory=lambda: array("q"))  # times of key frames; none without times
    unit: float = 1.0  # seconds
    stream: int = 0  # its number in the file

    @property
    def seconds(self) -> np.ndarray:
        """From the first frame, float64."""
        return (np.frombuffer(self.shown, np.int64) - self.shown[0]) * self.unit

    @property
    def key_numbers(self) -> list[int] | None:
        """Numbers of the key frames; None if they are not known."""
        return [bisect_left(self.shown, t) for t in self.keys] if self.keys else None


def decode_video(
    open_file: Opening, item: str, sampling: Sampling, size: int, decoder: str = "pyav", form: str | None = None
) -> Video:
    """The frames of a video file that a sampling chooses; the same ones every time.

    open_file: gives the path or the open file, several times. size: the shorter side of larger frames. decoder: ``pyav``, or
    ``torchcodec``, which needs FFmpeg's libraries on the machine. form: the only container that is tried, by FFmpeg's name; None:
    any. A first pass reads the packets for their times, without decoding; then each wanted frame is decoded from the last key frame
    before it. Raises ``BrokenItem(item, reason)`` for a file that is not
    a video, damaged, truncated or above ``MAX_PIXELS``, DiptychError if a package is not installed.
    """
    av = need("av", extra="video", what=f"{item}: decoding a video")
    try:
        found: tuple[list[np.ndarray], list[int]] | None = None
        with av.open(open_file(), format=form) as container:
            times = _packets(container, item, open_file)
            numbers = sampling.choose(times.seconds, times.key_numbers)
            if decoder == "pyav" and _rewound(container, times):
                found = _frames(container, times, numbers, size)
        if decoder == "torchcodec":
            found = _by_torchcodec(open_file(), numbers, times, size, item), [times.shown[number] for number in numbers]
        elif found is None:
            with av.open(open_file(), format=form) as container:
                found = _frames(container, times, numbers, size)
    except BrokenItem:
        raise
    except (av.FFmpegError, OSError, ValueError) as error:
        raise BrokenItem(item, f"cannot be decoded: {error}") from error
    pictures, shown = found
    if len(pictures) < len(numbers):
        raise BrokenItem(item, f"damaged: {len(pictures)} of {len(numbers)} frames can be decoded")
    return Video(pictures, [round((t - times.shown[0]) * times.unit, 6) for t in shown])


def _packets(container: Any, item: str, open_file: Opening) -> Times:
    """The times of a file's first video stream; the picture on the cover of a sound file is none."""
    streams = [s for s in container.streams.video if not int(s.disposition) & COVER]
    if not streams:
        raise BrokenItem(item, "holds no video stream")
    stream = streams[0]
    if stream.width * stream.height > MAX_PIXELS:
        raise BrokenItem(item, f"{stream.width} × {stream.height} pixels, above the limit of {MAX_PIXELS:,}")
    shown, keys, count, timed = array("q"), array("q"), 0, True
    for packet in container.demux(stream):
        if not packet.size:
            continue
        count += 1
        if packet.is_discard:
            continue
        timed = timed and packet.pts is not None
        shown.append(packet.pts if timed else len(shown))
        if packet.is_keyframe and timed:
            keys.append(packet.pts)
    if not shown:
        raise BrokenItem(item, "holds no frames")
    _check_whole(container, stream, count, shown if timed else None, item, open_file)
    if not timed:
        return Times(array("q", range(len(shown))), unit=1 / float(stream.average_rate or 25), stream=stream.index)
    return Times(_sorted(shown), _sorted(keys), float(stream.time_base), stream.index)


def _sorted(times: array[int]) -> array[int]:
    """In ascending order, eight bytes a time: ``sorted`` would make an object of each of an hour's frames."""
    return array("q", np.sort(np.frombuffer(times, np.int64)).tobytes()) if times else times


def _check_whole(container: Any, stream: Any, count: int, shown: array[int] | None, item: str, open_file: Opening) -> None:
    """Raises ``BrokenItem`` for a file that was cut off; a header alone that announces other frames than there are is wrong."""
    few = count < SHARE * stream.frames
    last = 0.0 if not shown else max(shown) * float(stream.time_base)
    short = not stream.frames and shown and container.duration and last < SHARE * container.duration / 1e6 - 1
    if (few or short) and (missing := _missing(open_file)):
        seen = f"{count} of {stream.frames} frames" if few else f"{last:.1f} of {container.duration / 1e6:.1f} s"
        raise BrokenItem(item, f"truncated: {seen}; {missing:,} bytes are missing at its end")


def _missing(open_file: Opening) -> int:
    file = open_file()
    if isinstance(file, str):
        return missing_bytes(file)
    with file:
        return missing_bytes(file)


def _rewound(container: Any, times: Times) -> bool:
    """Back to the first key frame of a file that was read through, which saves opening it again; False if that is impossible."""
    if not times.keys:
        return False
    try:
        container.seek(times.keys[0], stream=container.streams[times.stream])
    except OSError:  # an FFmpegError is one
        return False
    return True


def _frames(container: Any, times: Times, numbers: Sequence[int], size: int) -> tuple[list[np.ndarray], list[int]]:
    """Frames, and when each is shown, in the stream's unit: of a damaged file, the next one that can be decoded."""
    stream = container.streams[times.stream]
    stream.thread_count = 1  # clips are decoded in several processes: threads cost more than they give
    keys, first = times.keys, times.shown[0]
    wanted = frozenset(times.shown[number] for number in numbers) if keys else frozenset()
    pictures: list[np.ndarray] = []
    seen: list[int] = []
    decoded, now = _decoding(container, stream, wanted), None
    for number in numbers:
        target = times.shown[number]
        key = keys[bisect_right(keys, target) - 1] if keys and keys[0] <= target else None
        if key is not None and (now is None or key > now) and key > first:
            container.seek(key, stream=stream)
            decoded = _decoding(container, stream, wanted)
        for time, frame in decoded:
            now = time
            if time >= target:
                pictures.append(_picture(frame, size))
                seen.append(time)
                break
        else:
            break
    return pictures, seen


def _decoding(container: Any, stream: Any, wanted: frozenset[int]) -> Iterator[tuple[int, Any]]:
    """Decoded frames with their times; without ``wanted`` times, all with numbers from 0. Frames that are not wanted, and that no
    other frame is predicted from, are passed over. Not of interlaced films, where two packets may be one frame.
    """
    if not wanted:
        yield from enumerate(container.decode(stream))
        return
    context, passing, progressive = stream.codec_context, False, False
    context.skip_frame = "DEFAULT"  # an earlier pass may have left it otherwise
    for packet in container.demux(stream):
        if passing != (progressive and packet.pts not in wanted):
            passing = not passing
            context.skip_frame = "NONREF" if passing else "DEFAULT"
        for number, frame in enumerate(packet.decode()):
            progressive = not frame.interlaced_frame
            yield (number if frame.pts is None else frame.pts), frame


def _picture(frame: Any, size: int) -> np.ndarray:
    height, width = _shrunk(frame.height, frame.width, size)
    pixels = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA")
    turns = round(getattr(frame, "rotation", 0) / 90) % 4  # by the file's display matrix, anticlockwise
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def _shrunk(height: int, width: int, size: int) -> tuple[int, int]:
    scale = min(1.0, size / min(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def torchcodec_problem() -> str:
    """Why torchcodec cannot be used here: it is not installed, or FFmpeg's libraries that it needs are not there. Empty: it can."""
    try:
        need("torchcodec.decoders", extra=None, what="decoder=torchcodec")
    except DiptychError as error:
        return str(error)
    except (RuntimeError, OSError) as error:  # torchcodec's own, where it finds no FFmpeg
        return f"decoder=torchcodec: {str(error).strip().splitlines()[0]}"
    return ""


def _by_torchcodec(file: str | BinaryIO, numbers: Sequence[int], times: Times, size: int, item: str) -> list[np.ndarray]:
    """Frames by torchcodec, which turns them upright itself."""
    decoders = need("torchcodec.decoders", extra=None, what=f"{item}: decoder=torchcodec")
    source = file if isinstance(file, str) else file.read()
    try:
        decoder = decoders.VideoDecoder(source, stream_index=times.stream, num_ffmpeg_threads=1)
        if not hasattr(decoder.metadata, "rotation"):
            raise DiptychError(f"{item}: decoder=torchcodec needs torchcodec 0.11 or newer, which turns clips of phones upright")
        batch = decoder.get_frames_at(list(numbers))
    except (RuntimeError, IndexError) as error:
        raise BrokenItem(item, f"cannot be decoded by torchcodec: {error}") from error
    return [shrink(np.ascontiguousarray(frame.permute(1, 2, 0).numpy()), size) for frame in batch.data]


def decode_animation(data: bytes, item: str, sampling: Sampling, size: int) -> Video:
    """As ``decode_video``, of an animated GIF or WebP by Pillow. A picture that does not move is a ``BrokenItem``."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("GIF", "WEBP")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BrokenItem(item, f"{image.width} × {image.height} pixels, above the limit of {MAX_PIXELS:,}")
            count = getattr(image, "n_frames", 1)
            if count < 2:
                raise BrokenItem(item, "a single picture, not a clip")
            seconds, now, pictures = [], 0.0, []
            wanted = sampling.choose(range(count)) if sampling.by_number else []
            for number in range(count):  # each frame has a duration of its own
                image.seek(number)
                image.load()
                seconds.append(round(now, 6))
                now += (image.info.get("duration") or 100) / 1000
                if number in wanted:
                    pictures.append(shrink(to_rgb(image), size))
            if not sampling.by_number:
                wanted = sampling.choose(seconds)
                for number in wanted:
                    image.seek(number)
                    image.load()
                    pictures.append(shrink(to_rgb(image), size))
    except BrokenItem:
        raise
    except Exception as error:  # decoders of hostile data raise anything
        raise BrokenItem(item, f"cannot be decoded: {error}") from error
    return Video(pictures, [seconds[number] for number in wanted])


def decode_frames(
    read: Callable[[int], bytes], names: Sequence[str], item: str, sampling: Sampling, size: int, fps: float
) -> Video:
    """As ``decode_video``, of pictures in order, ``fps`` a second. read: the encoded picture of a number; the others are not
    read.
    """
    chosen = sampling.choose([i / fps for i in range(len(names))])
    pictures = [shrink(decode(read(i), f"{item}/{names[i]}"), size) for i in chosen]
    if len({p.shape for p in pictures}) > 1:
        raise BrokenItem(item, "frames of different sizes")
    return Video(pictures, [round(i / fps, 6) for i in chosen])
