"""How the cost grows: training steps of the recipe `clip` (bf16, AdamW), starting from one configuration (both towers width 256,
depth 4; 64 patches, 32 tokens, batch 32) and varying one size at a time; each configuration in a new process. Then the time of one
step of the ViT-S/16 dual encoder by kind of operator."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable
from typing import Any

from bench.harness import Bench, measure_memory, megabytes, rate
from bench.models import Learner, images, ours, recipe, theirs, token_ids

MIDDLE = {"width": 256, "depth": 4, "patches": 64, "tokens": 32, "batch": 32}
STEPS = {
    "width": [64, 128, 256, 512],
    "depth": [1, 2, 4, 8],
    "patches": [16, 64, 256, 576],
    "tokens": [16, 32, 64, 128],
    "batch": [8, 32, 128, 256],
}
KINDS = {
    "products of linear layers": ("aten::mm", "aten::addmm"),
    "attention": ("aten::bmm", "aten::baddbmm", "aten::_softmax", "scaled_dot_product"),
    "gelu": ("aten::gelu",),
    "norms": ("layer_norm",),
    "optimizer": ("adamw", "Optimizer", "aten::sqrt", "aten::addcdiv_", "aten::addcmul_", "aten::lerp_", "aten::div"),
    "copies and casts": ("aten::copy_", "aten::cat", "aten::fill_", "aten::zero_"),
    "convolution": ("convolution",),
}


def learner(width: int, depth: int, patches: int, tokens: int, batch: int) -> Learner:
    side = 8 * round(patches**0.5)
    tower = {"width": width, "depth": depth, "heads": max(width // 64, 1)}
    sizes: dict[str, Any] = {
        "data.image_size": side,
        "data.tokenizer.max_length": tokens,
        "parts.vision": {"kind": "vit", "stem": "patch", "patch": 8, **tower},
        "parts.text": {"kind": "transformer", **tower},
    }
    return ours(recipe("bf16", **sizes), images(batch, side), token_ids(batch, tokens))


def prepare(**sizes: int) -> Callable[[], float]:
    made = learner(**sizes)

    def work() -> float:
        """Seconds of the median step after the first."""
        seconds = []
        for _ in range(4):
            began = time.perf_counter()
            made.step()
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds[1:])

    return work


def run(bench: Bench) -> None:
    curves: dict[str, list[tuple[int, float, float]]] = {}
    rows = []
    middle = None
    for what, values in STEPS.items():
        for value in values[2:3] if bench.quick else values:
            if value == MIDDLE[what] and middle is not None:
                m = middle
            else:
                m = measure_memory("bench.cases.scaling:prepare", **{**MIDDLE, what: value})
            middle = m if value == MIDDLE[what] else middle
            batch = value if what == "batch" else MIDDLE["batch"]
            curves.setdefault(what, []).append((value, batch / m.result, m.extra))
            rows.append([f"{what} {value}", rate(batch / m.result), f"{m.result * 1e3:.0f}", megabytes(m.extra)])
            print("  ", *rows[-1], flush=True)
    bench.table(["", "samples/s", "ms per step", "memory of training (activations, gradients, optimizer)"], rows)
    bench.figure(
        "Samples per second (solid, left) and memory of training (dashed, right) against one size at a time; both axes "
        "logarithmic.",
        plot(curves),
    )
    shares = {}
    n = 2 if bench.quick else 8
    for precision in ("fp32", "bf16"):
        for name, make in (
            ("diptych", lambda p: ours(recipe(p), images(n), token_ids(n))),
            ("open_clip", lambda p: theirs(p, images(n), token_ids(n))),
        ):
            shares[f"{name}, {precision}"] = profile(make(precision), n)
    kinds = list(next(iter(shares.values())))
    bench.table(["ms per sample", *shares], [[k, *(f"{s[k]:.0f}" for s in shares.values())] for k in kinds], f"One step, batch {n}")
    bench.figure(
        f"Time of a training step: ms per sample by kind of operator, ViT-S/16 dual encoder, 77 tokens, batch {n}.",
        bars(shares),
    )
    bench.note(
        "The largest share, the products of the linear layers, is determined by the size of the model. In fp32 it runs near the "
        "machine's peak, and only a smaller "
        "number format helps: bf16 halves it, so it is the default if the processor multiplies bf16 fast. The rest was optimised: "
        "attention uses the "
        "faster implementation for each precision (`attention`), the optimizer is torch's fused one, texts are padded only to the "
        "longest of the batch, and dropped patches are left out before the stem."
    )


def profile(made: Learner, n: int) -> dict[str, float]:
    """Milliseconds a sample by kind of operator, of one step after a warm-up."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    made.step()
    with record(activities=[ProfilerActivity.CPU]) as p:
        made.step()
    shares = dict.fromkeys([*KINDS, "everything else"], 0.0)
    for event in p.key_averages():
        kind = next((k for k, names in KINDS.items() if any(name in event.key for name in names)), "everything else")
        shares[kind] += event.self_cpu_time_total / 1e3 / n
    return shares


def svg(figure: Any) -> str:
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "diptych"}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return buffer.getvalue()


def plot(curves: dict[str, list[tuple[int, float, float]]]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 2.8), layout="constrained")
    for axis, (what, points) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
        x, speed, memory = zip(*points, strict=True)
        axis.loglog(x, speed, "o-", color="#1f5fa8")
        other = axis.twinx()
        other.loglog(x, [m / 1e6 for m in memory], "s--", color="#b5541c")
        axis.set_title(what, fontsize=10)
        axis.set_xticks(x, [str(v) for v in x])
        axis.minorticks_off()
        axis.tick_params(labelsize=7, axis="both")
        other.tick_params(labelsize=7)
        if what == next(iter(curves)):
            axis.set_ylabel("samples/s", color="#1f5fa8", fontsize=8)
        if what == list(curves)[-1]:
            other.set_ylabel("MB", color="#b5541c", fontsize=8)
    return svg(figure)


def bars(shares: dict[str, dict[str, float]]) -> str:
    from matplotlib.figure import Figure

    colours = ["#1f5fa8", "#b5541c", "#3c8d5a", "#8a62a8", "#c4a02f", "#7a7a7a", "#4fb3bf", "#cccccc"]
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    axis = figure.subplots()
    labels = list(shares)[::-1]
    left = [0.0] * len(labels)
    for colour, kind in zip(colours, next(iter(shares.values())), strict=True):
        widths = [shares[label][kind] for label in labels]
        axis.barh(labels, widths, left=left, color=colour, label=kind)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axis.set_xlabel("ms per sample", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return svg(figure)
