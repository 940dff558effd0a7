"""Pictures out of bytes in memory, one at a time, as uint8 RGB arrays: pictures a CPU-second of one process. 256 × 256 pixels with the
spectrum of photographs (`loading`), of quality 90 (JPEG, WebP), 80 (AVIF) and without loss (PNG). OpenCV and PyTurboJPEG take part where
they are installed; `packed:` uses simplejpeg, and Pillow for WebP."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, features

from bench.cases.loading import picture
from bench.harness import Bench

CODECS: dict[str, tuple[str, dict[str, Any]]] = {
    "JPEG": ("JPEG", {"quality": 90, "subsampling": "4:2:0"}),
    "WebP": ("WEBP", {"quality": 90}),
    "AVIF": ("AVIF", {"quality": 80}),
    "PNG": ("PNG", {}),
}


def run(bench: Bench) -> None:
    n = 32 if bench.quick else 256
    shown = [picture(i) for i in range(n)]
    names = [name for name in CODECS if name != "AVIF" or features.check("avif")]
    stored = {name: [encoded(p, *CODECS[name]) for p in shown] for name in names}
    contestants: dict[str, Callable[[], None]] = {
        f"{name}, Pillow": lambda data=stored[name]: each(by_pillow, data) for name in names
    }
    for name, decode in decoders().items():
        contestants[f"JPEG, {name}"] = lambda decode=decode: each(decode, stored["JPEG"])
    baseline = "JPEG, Pillow"
    bench.compare(
        "decoding", contestants, baseline, work=n, unit="pictures", rounds=5, clock="cpu", goals={"JPEG, simplejpeg": 1.0}
    )
    sizes = {name: np.mean([len(d) for d in data]) / 1e3 for name, data in stored.items()}
    errors = {
        name: np.mean([np.abs(by_pillow(d).astype(int) - p).mean() for d, p in zip(stored[name], shown, strict=True)])
        for name in names
    }
    bench.table(
        ["", "kB a picture", "mean error of a value (0 to 255)"],
        [[k, f"{sizes[k]:.1f}", f"{errors[k]:.2f}"] for k in names],
        "size",
    )


def encoded(pixels: np.ndarray, format: str, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def each(decode: Callable[[bytes], np.ndarray], data: list[bytes]) -> None:
    for one in data:
        decode(one)


def by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def decoders() -> dict[str, Callable[[bytes], np.ndarray]]:
    """Other decoders of JPEG that are installed."""
    import simplejpeg

    found: dict[str, Callable[[bytes], np.ndarray]] = {"simplejpeg": lambda data: simplejpeg.decode_jpeg(data, "RGB")}
    try:
        import cv2

        found["OpenCV"] = lambda data: cv2.cvtColor(
            cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB
        )
    except ImportError:
        pass
    try:
        from turbojpeg import TJPF_RGB, TurboJPEG

        turbo = TurboJPEG()
        found["PyTurboJPEG"] = lambda data: turbo.decode(data, pixel_format=TJPF_RGB)
    except (ImportError, RuntimeError, OSError):  # the package, or the library that it loads, is not there
        pass
    return found
