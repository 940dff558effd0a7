"""Clips: decoding 8 of 300 frames (320 × 240, H.264, as encoders write it by default, and with a key frame every 30), in CPU-seconds
of one process; drawing clips of the built-in world; and memory by the length of a clip.

*Plain PyAV* decodes from the start to the last frame that is wanted, and converts those; *plain PyAV, seeking* jumps to the key
frame before each wanted frame. `packed` is what `diptych data pack` made of the same files (JPEG, or raw pixels)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import Bench, measure_memory, megabytes
from diptych.data.fields.video import spread

HEIGHT, WIDTH, FRAMES, WANTED = 240, 320, 300, 8


def run(bench: Bench) -> None:
    with tempfile.TemporaryDirectory() as directory:
        for gop in (250, 30):
            decoding(bench, Path(directory) / str(gop), gop)
        memory(bench, Path(directory))
    drawing(bench)
    bench.note(
        "Raw packed frames are views into the mapped file: their pixels are not read until they are used, so their ratio is what "
        "finding them costs."
    )


def decoding(bench: Bench, place: Path, gop: int) -> None:
    from diptych.data.packing import pack
    from diptych.data.sources import open_source

    clips = 2 if bench.quick else 8
    paths = [write(place / f"{i}.mp4", FRAMES, gop, seed=i) for i in range(clips)]
    for path in paths:
        path.with_suffix(".txt").write_text("a clip")
    address = f"video:{place}?frames={WANTED}"
    source, contestants = open_source(address), {}

    def ours(of: Any) -> Callable[[], None]:
        def read() -> None:
            for i in range(len(of)):
                assert len(of[i].fields["video"].frames) == WANTED

        return read

    contestants["plain PyAV"] = lambda: [plain(path) for path in paths]
    contestants["plain PyAV, seeking"] = lambda: [seeking(path) for path in paths]
    contestants["video:"] = ours(source)
    for format in ("jpeg", "raw"):
        pack(address, place / format, HEIGHT, format, workers=1, progress=False)  # type: ignore[arg-type]
        contestants[f"packed {format}"] = ours(open_source(f"packed:{place}/{format}"))
    for path in paths:  # the same pictures, or the comparison says nothing
        for a, b in zip(plain(path), seeking(path), strict=True):
            assert np.array_equal(a, b)
    for path, i in zip(paths, range(len(source)), strict=True):
        assert all(np.abs(a.astype(int) - b).mean() < 4 for a, b in zip(plain(path), source[i].fields["video"].frames, strict=True))
    goals = {"video:": 1.0, "packed jpeg": 3, "packed raw": 3}
    bench.compare(
        f"{WANTED} of {FRAMES} frames, a key frame every {gop}",
        contestants,
        "plain PyAV",
        work=clips,
        unit="clips",
        clock="cpu",
        goals=goals,
    )


def write(path: Path, n: int, gop: int, seed: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH), fps: int = 30) -> Path:
    """A window that wanders over a texture with the spectrum of photographs."""
    import av

    rng, (height, width) = np.random.default_rng(seed), size
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(2 * height), np.fft.rfftfreq(2 * width), indexing="ij"))
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((3, 2 * height, 2 * width))) / np.maximum(frequency, 1 / height) ** 1.4)
    texture = np.clip(128 + 50 * noise / noise.std(), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = height, width, "yuv420p", gop
        stream.options = {"preset": "veryfast", "threads": "1"}
        for k in range(n):
            y, x = (int(side / 2 * (1 + np.sin(k / period))) for side, period in ((height, 41), (width, 57)))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(texture[y : y + height, x : x + width]), "rgb24")
            frame.pts, frame.time_base = k, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def plain(path: Path) -> list[np.ndarray]:
    import av

    wanted, frames = set(spread(FRAMES, WANTED)), []
    with av.open(str(path)) as container:
        for k, frame in enumerate(container.decode(video=0)):
            if k in wanted:
                frames.append(frame.to_ndarray(format="rgb24"))
            if len(frames) == WANTED:
                break
    return frames


def seeking(path: Path) -> list[np.ndarray]:
    import av

    frames = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        for k in spread(FRAMES, WANTED):
            target = round(k / 30 / stream.time_base)
            container.seek(target, stream=stream)
            frames.append(next(f for f in container.decode(stream) if f.pts >= target).to_ndarray(format="rgb24"))
    return frames


def memory(bench: Bench, place: Path) -> None:
    """8 frames of a minute and of an hour, at 5 frames a second."""
    peaks = {}
    for name, seconds in (("a minute", 60), ("an hour", 600 if bench.quick else 3600)):
        path = write(place / f"{seconds}.mp4", 5 * seconds, 250, size=(120, 160), fps=5)
        peaks[name] = measure_memory("bench.cases.video:reader", path=str(path))
    rows = [[name, megabytes(m.peak), megabytes(m.extra)] for name, m in peaks.items()]
    bench.table(["clip", "peak", "of this for reading"], rows, "memory of a process that reads 8 frames")
    ratio = peaks["an hour"].peak / peaks["a minute"].peak
    bench.goal("8 frames of an hour ≤ 1.2 × the memory of 8 frames of a minute", f"{ratio:.2f} ×", ratio <= 1.2)


def reader(path: str) -> Callable[[], int]:
    from diptych.data.video import decode_video
    from diptych.data.videos.sampling import Sampling

    return lambda: len(decode_video(lambda: path, path, Sampling(WANTED), HEIGHT).frames)


def drawing(bench: Bench) -> None:
    from bench.harness import cpu_seconds
    from diptych.data.scenes import open_scenes

    n = 200 if bench.quick else 2000
    rows = []
    for name, address in (
        ("16 frames of 48 px", "scenes:clips?actions=all&size=48"),
        ("16 frames of 64 px", "scenes:clips?actions=all"),
        ("64 frames of 48 px, four events", "scenes:clips?events=4&size=48"),
    ):
        source, began = open_scenes(address), 0.0
        source[0]
        began = cpu_seconds()
        for i in range(n):
            source[i]
        rate = n / (cpu_seconds() - began)
        rows.append([name, f"`{address}`", f"{rate:,.0f}"])
        if len(rows) == 1:
            bench.goal("clips of 16 × 48 px, all kinds: ≥ 300 a CPU-second", f"{rate:,.0f}", rate >= 300)
    bench.table(
        ["clips", "address", "clips / CPU-s"],
        rows,
        f"drawing {n:,} clips with texts, questions and boxes, one process, sprites not yet made",
    )
