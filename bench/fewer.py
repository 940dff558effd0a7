"""Accuracy against the number of image tokens at equal weights: ``python -m bench.fewer RUN``.

One trained run, read with fewer tokens in several ways (``fewer:RUN?…``), is evaluated on the same items. FLOPs are those of the
likelihood of one caption of one picture, by the counter of training (``diptych.training.flops``): tower, connector, language model.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np

WAYS = (
    "",
    "tome=27",
    "tome=18",
    "tome=9",
    "scan=27",
    "scan=18",
    "scan=9",
    "keep=0.75",
    "keep=0.5",
    "keep=0.25",
    "scan=27&keep=0.5",
    "tome=27&keep=0.5",
)
METRICS = ("controlled colour", "controlled size", "captions cider", "captions bleu4")


def cost(model: Any, image: Any, caption: str) -> float:
    """FLOPs of the likelihood of a caption given a picture. Not in inference mode, which hides the operators from the counter."""
    import torch

    from diptych.training.flops import FlopMeter

    vlm, lm = model.model, model.model.part("lm")
    ids, mask = (torch.from_numpy(x) for x in vlm.tokenizer.encode_batch([caption]))

    def read() -> Any:
        """Logits of the caption."""
        return lm.continue_logits(lm.remember(vlm.encode(model._images([image]).batch)["image.prefix"]), ids, mask)

    with torch.no_grad():
        return FlopMeter().count(("likelihood",), read)[1]


def tokens(model: Any) -> tuple[int, float]:
    """Image tokens that the language model is given, and their mean over its layers."""
    given = int(model.model.part("connector").tokens)
    pruning = model.model.part("lm").lm.pruning
    if pruning is None:
        return given, float(given)
    depth = int(model.model.part("lm").lm.model.config.num_hidden_layers)
    left = math.ceil(pruning.keep * given - 1e-9)
    return given, (pruning.after * given + (depth - pruning.after) * left) / depth


def main() -> None:
    """A table in Markdown, a line for each way."""
    import diptych
    from diptych.benchmarks.run import evaluate

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--data", default="scenes:small")
    parser.add_argument("--tasks", default="controlled?n=60,captions?n=150")
    parser.add_argument("--metrics", default=",".join(METRICS))
    parser.add_argument(
        "--ways", default=",".join(WAYS), help="settings of fewer:, with commas between the ways; empty: all tokens"
    )
    given = parser.parse_args()
    source = diptych.open_source(given.data).split("test")
    sample, titles = source[0], given.metrics.split(",")
    print("| way | tokens | mean over layers | MFLOP | " + " | ".join(titles) + " |")
    print("|---" * (4 + len(titles)) + "|")
    for way in given.ways.split(","):
        model = diptych.load(f"fewer:{given.run}?{way}" if way else given.run, "cpu")
        summary = evaluate(model, source, given.tasks.split(","))
        values = {f"{r.task} {r.metric}": r for r in summary.results}
        cells = [f"{values[t].value:.3f} [{values[t].low:.3f}, {values[t].high:.3f}]" for t in titles]
        read, mean = tokens(model)
        flops = cost(model, np.asarray(sample.image), sample.captions[0]) / 1e6
        print(f"| {way or 'all'} | {read} | {mean:g} | {flops:.1f} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
