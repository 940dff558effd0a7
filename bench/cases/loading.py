"""Reading 256 px images with a caption at random, in one process, into batches of 64 (uint8): samples per CPU-second. The files are
in the page cache, so this is what decoding and the reader itself cost, not the disk.

webdataset reads tar shards through its shuffle buffer; `packed:` is read in a random order of the whole set. Each has the same
JPEGs: 256 × 256 pixels, quality 90, made here with the spectrum of photographs (amplitude falling as 1/f, grey
varying more than colour), and of the size in bytes that photographs have
(about 23 kB; the central squares of COCO's, at this size and quality, have 22). `packed raw` holds their pixels.
"""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import Bench, megabytes
from bench.peers import peer

SIDE, BATCH, SHARD = 256, 64, 512


def run(bench: Bench) -> None:
    n = 256 if bench.quick else 2048
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        sizes = write_shards(root, n)
        contestants, bytes_ = prepare(root, n)
        bench.note(
            f"{n:,} images of {min(sizes) / 1e3:.0f} to {max(sizes) / 1e3:.0f} kB, {np.mean(sizes) / 1e3:.1f} kB on average."
        )
        baseline = "webdataset + PIL"
        timings = bench.compare(
            "samples into batches",
            contestants,
            baseline,
            work=n,
            unit="samples",
            clock="cpu",
            goals={"packed raw": 10, "packed jpeg": 2},
        )
        ours = {name: timings[name] for name in ("packed raw", "packed jpeg")}
        for (name, timing), least in zip(ours.items(), (6, 1.2), strict=True):
            rounds = zip(timings["webdataset + simplejpeg"].seconds, timing.seconds, strict=True)
            ratio = float(np.median([peer_ / own for peer_, own in rounds]))
            bench.goal(f"{name} ≥ {least:g}× webdataset + simplejpeg", f"{ratio:.2f}×", ratio >= least)
        bench.table(["", "on disk"], [[name, megabytes(size)] for name, size in bytes_.items()], "size of the same images")


def write_shards(root: Path, n: int) -> list[int]:
    """``n`` JPEGs with captions as webdataset's tar shards; their sizes in bytes."""
    import simplejpeg

    sizes = []
    for first in range(0, n, SHARD):
        with tarfile.open(root / f"{first // SHARD:03d}.tar", "w") as tar:
            for i in range(first, min(first + SHARD, n)):
                data = simplejpeg.encode_jpeg(picture(i), quality=90, colorsubsampling="420")
                sizes.append(len(data))
                add(tar, f"{i:06d}.jpg", data)
                add(tar, f"{i:06d}.txt", f"picture number {i}, of nothing that a caption of usual length could describe".encode())
    return sizes


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def picture(seed: int) -> np.ndarray:
    """uint8 [SIDE, SIDE, 3]: noise with the spectrum of a photograph."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(SIDE), np.fft.rfftfreq(SIDE), indexing="ij"))
    spectrum = 1 / np.maximum(frequency, 1 / SIDE) ** rng.uniform(1.2, 1.6)
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((4, SIDE, SIDE))) * spectrum, (SIDE, SIDE))
    noise /= noise.std((1, 2), keepdims=True)
    texture = 40 * noise[0][..., None] + 12 * np.moveaxis(noise[1:], 0, -1)  # grey more than colour, as in photographs
    return np.ascontiguousarray(np.clip(rng.uniform(90, 160, 3) + texture, 0, 255).astype(np.uint8))


def prepare(root: Path, n: int) -> tuple[dict[str, Callable[[], Any]], dict[str, int]]:
    """What takes turns, each reading all ``n`` samples once; and the bytes that each reads from."""
    import simplejpeg

    from diptych.data.packing import pack
    from diptych.data.sources.packed import Packed

    wds = peer("webdataset")
    shards = sorted(str(path) for path in root.glob("*.tar"))
    bytes_ = {"tar shards": sum(Path(s).stat().st_size for s in shards)}
    packed = {}
    for format in ("jpeg", "raw"):
        out = root / format
        bytes_[f"packed {format}"] = pack(f"wds:{root}/*.tar", out, SIDE, format, workers=1, progress=False)["bytes"]  # type: ignore[arg-type]
        packed[format] = Packed(str(out))

    def simple(key: str, data: bytes) -> Any:
        return simplejpeg.decode_jpeg(data) if key.endswith("jpg") else None

    def webdataset(decoder: Any) -> Callable[[], None]:
        def read() -> None:
            data = wds.WebDataset(shards, shardshuffle=len(shards), seed=0).shuffle(500).decode(decoder)
            consume(iter(data.to_tuple("jpg", "txt").batched(BATCH)), n)

        return read

    def random_access(source: Packed) -> Callable[[], None]:
        rng = np.random.default_rng(0)

        def read() -> None:
            order = rng.permutation(len(source))
            consume(batches(source, order), n)

        return read

    contestants = {
        "webdataset + PIL": webdataset("rgb8"),
        "webdataset + simplejpeg": webdataset(simple),
        "packed jpeg": random_access(packed["jpeg"]),
        "packed raw": random_access(packed["raw"]),
    }
    return contestants, bytes_


def batches(source: Any, order: np.ndarray) -> Iterator[tuple[np.ndarray, list[str]]]:
    for first in range(0, len(order), BATCH):
        samples = [source[int(i)] for i in order[first : first + BATCH]]
        yield np.stack([s.image for s in samples]), [s.captions[0] for s in samples]


def consume(stream: Iterator[Any], n: int) -> None:
    """Read ``n`` samples and make sure that they are what they should be."""
    count = 0
    for images, captions in stream:
        assert images.shape[1:] == (SIDE, SIDE, 3) and images.dtype == np.uint8 and len(captions) == len(images)
        count += len(images)
        if count >= n:
            return
    raise AssertionError(f"{count} samples where {n} were asked for")
