"""How long one call takes, in torch and in the export, on the same threads and in turn; and with what this was measured."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch

from diptych.core.capabilities import Image, Model
from diptych.inference.onnx.probes import picture
from diptych.inference.onnx.runtime import OnnxModel

MOST = 200  # calls
PACKAGES = ("diptych", "torch", "onnx", "onnxscript", "onnxruntime", "openvino", "transformers", "tokenizers", "pillow", "numpy")


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call with ``batch`` items: median, 95th and 99th percentile of ``calls``; what is not a vector's own
    arithmetic (resizing, tokenizing) is part of it. of: torch (as the model runs it, in bf16 where it does), or onnx.
    """

    side: str
    batch: int
    of: str
    p50: float
    p95: float
    p99: float
    calls: int


def latencies(model: Model, made: OnnxModel, images: Sequence[Image], captions: Sequence[str], seconds: float) -> list[Latency]:
    """Pictures and texts, one at a time and sixteen at a time. Texts differ from call to call: some models remember them."""
    rng = np.random.default_rng(2)
    shown = list(images[:64]) or [picture(i % 3, 240, 320, rng) for i in range(16)]
    read = list(captions[:64]) or ["a photo of a dog in the sea"]
    before, result = torch.get_num_threads(), []
    torch.set_num_threads(made.threads)
    try:
        for batch in (1, 16):
            pictures = [[shown[(i + j) % len(shown)] for j in range(batch)] for i in range(16)]
            texts = [[f"{read[(i * batch + j) % len(read)]} {i} {j}" for j in range(batch)] for i in range(MOST + 2)]
            both: dict[str, tuple[list[list[Any]], dict[str, Callable[[Any], Any]]]] = {
                "image": (pictures, {"torch": model.embed_image, "onnx": made.embed_image}),
                "text": (texts, {"torch": model.embed_text, "onnx": made.embed_text}),
            }
            for side, (calls, functions) in both.items():
                for of, times in _in_turn(calls, functions, seconds).items():
                    p50, p95, p99 = (float(x) * 1e3 for x in np.percentile(times, (50, 95, 99)))
                    result.append(Latency(side, batch, of, p50, p95, p99, len(times)))
    finally:
        torch.set_num_threads(before)
    return result


def _in_turn(calls: Sequence[Any], functions: dict[str, Callable[[Any], Any]], seconds: float) -> dict[str, list[float]]:
    for function in functions.values():  # the first calls set up
        function(calls[-1])
    times: dict[str, list[float]] = {name: [] for name in functions}
    end = time.perf_counter() + 2 * seconds
    for i in range(MOST):
        for name, function in functions.items():
            start = time.perf_counter()
            function(calls[i % len(calls)])
            times[name].append(time.perf_counter() - start)
        if time.perf_counter() > end and i >= 2:
            break
    return times


def versions(made: OnnxModel) -> dict[str, Any]:
    """Packages, threads and processor."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {"versions": packages, "python": platform.python_version(), "threads": made.threads, "processor": processor()}


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
