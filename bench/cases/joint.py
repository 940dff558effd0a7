"""The cost of a training step with the joint alignment of Ak et al.: EfficientNet-Lite0, an MLP and frozen Gemma-3-270M on captions of `scenes:small`, batch 32, one fixed
batch, so that the embeddings of the sentences are known beforehand, as in the paper; CPU time. *Joint* reads image, caption and the image's [EOS] in one sequence; *with prompts* reads a few words more;
*PRIOR* reads the captions a second time without the image. Needs the packaged weights."""

from __future__ import annotations

from typing import Any

import torch

from bench.harness import Bench
from bench.models import Learner
from diptych.config.recipe import load_recipe
from diptych.core.batch import Batch, Images
from diptych.data.fields.base import to_pixels
from diptych.data.fields.text import tokenized
from diptych.training.optim import build_optimizer
from diptych.training.start.setup import set_up


def learner(name: str, n: int, *overrides: str) -> Learner:
    recipe = load_recipe(name, ["data.train=scenes:small", *overrides])
    setup = set_up(recipe)
    model, objectives, stage = setup.model, setup.objectives, recipe.stages[0]
    optimizer: Any = build_optimizer([model, objectives], stage)
    optimizer.set_rate(1.0)
    samples = [setup.source[i] for i in range(n)]
    captions = [sample.captions[0] for sample in samples]
    pixels = to_pixels([sample.image for sample in samples if sample.image is not None])
    batch = Batch({"image": Images(pixels), "text": tokenized(model.tokenizer, captions)}, n)
    model.train()

    def loss() -> torch.Tensor:
        p = model.encode(batch)
        return sum(stage.objectives[key].weight * objectives[key](p) for key in sorted(stage.objectives))  # type: ignore[return-value]

    return Learner(model, loss, optimizer.step, optimizer.zero_grad, setup.autocast)


def run(bench: Bench) -> None:
    n = 8 if bench.quick else 32
    contestants = {
        "next token": learner("llava", n).step,
        "joint": learner("llava-joint", n).step,
        "joint, with prompts": learner("llava-joint", n, "parts.lm.prompts=true").step,
        "PRIOR": learner("prior", n).step,
    }
    bench.compare(f"batch {n}", contestants, "next token", work=n, unit="samples", rounds=5, goals={"joint": 1 / 1.15}, clock="cpu")
    bench.note("The goal is a step that takes at most 1.15 times as long: at least 0.87 of the rate.")
