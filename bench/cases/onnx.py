"""Pictures a second through `embed_image`, resizing included, as `diptych index` and `diptych serve` embed them: ONNX exports in ONNX
Runtime and in OpenVINO against torch as the model runs it (`conse`: fp32, channels last; `clip`: bf16 where the processor has it). 256
pictures of 320 × 240 pixels, already decoded, in calls of 64. The texts are captions of which none was seen before, in calls of 64."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.harness import Bench, interleave, rate
from diptych.benchmarks.statistics import paired_test
from diptych.config.recipe import load_recipe
from diptych.core.errors import DiptychError
from diptych.data.sources import open_source
from diptych.data.text import Tokenizer
from diptych.inference.load import load
from diptych.inference.onnx import export as exporting
from diptych.inference.onnx.runtime import OnnxModel
from diptych.inference.run import TrainedModel
from diptych.models.vlm import build_model
from diptych.objectives import build_objectives

SLOW = True  # several minutes
DATA = "scenes:small?length=600"
GOAL = 1.5


def clip() -> TrainedModel:
    """An untrained `clip` as it is trained on scenes: its speed is that of a trained one."""
    recipe = load_recipe("clip", ["trackers=[]"])
    source = open_source(DATA)
    captions = [source[i].captions[0] for i in range(200)]
    tokenizer = Tokenizer.train(captions, recipe.data.tokenizer.vocab_size, recipe.data.tokenizer.max_length)
    torch.manual_seed(0)
    model = build_model(recipe, tokenizer, 48)
    return TrainedModel("clip", recipe, model, build_objectives(recipe, model, training=False), torch.device("cpu"))


def pictures(n: int) -> list[np.ndarray]:
    source, rng = open_source(DATA), np.random.default_rng(0)
    made = []
    for i in range(n):
        scene = source[i].image
        assert scene is not None
        rows, columns = np.arange(240) * scene.shape[0] // 240, np.arange(320) * scene.shape[1] // 320
        noise = rng.integers(-8, 9, (240, 320, 3))
        made.append(np.clip(scene[rows][:, columns].astype(int) + noise, 0, 255).astype(np.uint8))
    return made


@contextmanager
def one_model(model: Any) -> Iterator[None]:
    """``export_onnx`` exports this one."""
    before, exporting.load = exporting.load, lambda address, device="auto": model
    try:
        yield
    finally:
        exporting.load = before


def calls(embed: Callable[[Any], Any], items: list[Any]) -> Callable[[], None]:
    def work() -> None:
        for start in range(0, len(items), 64):
            embed(items[start : start + 64])

    return work


class Fresh:
    """Texts that are new each time: a sentence encoder remembers those that it has seen."""

    turn = 0  # of all contestants: a model is measured with one thread and with two

    def __init__(self, embed: Callable[[Any], Any], texts: list[str]):
        self.embed, self.texts = embed, texts

    def __call__(self) -> None:
        Fresh.turn += 1
        calls(self.embed, [f"{text} {Fresh.turn}" for text in self.texts])()


def run(bench: Bench) -> None:
    n, rounds = (32, 1) if bench.quick else (256, 5)
    shown = pictures(n)
    source = open_source(DATA)
    texts = [source[i].captions[0] for i in range(n)]
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, model in (("conse", load("conse", "cpu")), ("clip", clip())):
            paths: dict[str, Path] = {}
            for precision in ("fp32", "int8"):
                with one_model(model):
                    try:
                        made = exporting.export_onnx(
                            name, paired_test, Path(folder) / f"{name}-{precision}", precision, DATA, seconds=0, limit=100
                        )
                        paths[precision] = made.path
                    except DiptychError as refused:  # by the certificate, or since neither side may be in 8 bits
                        bench.note(str(refused))
            for threads in (2, 1):
                rows += measured(bench, name, model, paths, threads, shown, texts, rounds)
    bench.table(["model", "threads", "side", "torch, 1/s", *[f"{r}, {p}" for r, p in KINDS]], rows)


KINDS = [(r, p) for r in ("onnxruntime", "openvino") for p in ("fp32", "int8")]


def measured(
    bench: Bench, name: str, model: Any, paths: dict[str, Path], threads: int, shown: list[Any], texts: list[str], rounds: int
) -> list[list[str]]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    rows = []
    try:
        made = {(r, p): OnnxModel(paths[p], r, threads) for r, p in KINDS if p in paths}  # type: ignore[arg-type]
        for side, items in (("image", shown), ("text", texts)):
            every = {"torch": getattr(model, f"embed_{side}")} | {
                f"{r}, {p}": getattr(m, f"embed_{side}") for (r, p), m in made.items()
            }
            work = {k: calls(f, items) if side == "image" else Fresh(f, texts) for k, f in every.items()}
            found = interleave(work, "torch", rounds)
            cells = ["refused"] * len(KINDS)
            for i, (runtime, precision) in enumerate(KINDS):
                if t := found.get(f"{runtime}, {precision}"):
                    cells[i] = f"{rate(len(items) / t.median)} ({t.ratio:.2f} ×)"
            rows.append([name, str(threads), side, rate(len(items) / found["torch"].median), *cells])
            print("  ", *rows[-1], flush=True)
            if side == "image":
                best = max((t.ratio, k) for k, t in found.items() if k != "torch")
                text = f"{name}, {threads} threads: at least {GOAL} × the pictures of torch by one of the exports"
                bench.goal(text, f"{best[0]:.2f} × ({best[1]})", best[0] >= GOAL)
    finally:
        torch.set_num_threads(before)
    return rows
