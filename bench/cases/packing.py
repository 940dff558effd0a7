"""Conversations in padded and in packed rows: forward and backward of a random language model of Gemma's architecture (width 256,
depth 4) on 48 conversations with lengths distributed as in instruction data (log-normal, median 110, between 20 and 600 tokens; a
third of the tokens is trained), rows of 640, fp32, in CPU-seconds. *Pieces of 8*: each group of 8 conversations is padded
separately. All variants have the same loss."""

from __future__ import annotations

import numpy as np
import torch

from bench.harness import Bench
from bench.models import Learner
from diptych.config.recipe import load_recipe
from diptych.core.batch import Batch, Turns
from diptych.data.conversations.rows import best_fit, laid_out
from diptych.data.conversations.template import Document
from diptych.training.optim import build_optimizer
from diptych.training.start.setup import set_up

ROOM = 640
LITTLE = ["parts.lm={kind: random, width: 256, depth: 4}", "parts.vision={kind: vit, depth: 1, width: 32, heads: 2}",
          "precision=fp32", "data.conversations={max_length: 640, pack: true}"]  # fmt: skip


def documents(n: int, vocabulary: int, seed: int = 0) -> list[Document]:
    rng = np.random.default_rng(seed)
    lengths = np.clip(np.exp(rng.normal(np.log(110), 0.8, n)), 20, 600).astype(int)
    return [Document(rng.integers(4, vocabulary, k).tolist(), [i >= k - k // 3 for i in range(k)], 0) for k in lengths.tolist()]


def batch(some: list[Document], packed: bool) -> Batch:
    rows = best_fit([len(d) for d in some], ROOM) if packed else [[i] for i in range(len(some))]
    return Batch({"turns": Turns(*map(torch.from_numpy, laid_out(some, rows, 0)))}, len(some))


def run(bench: Bench) -> None:
    recipe = load_recipe("llava-instruct", LITTLE)
    setup = set_up(recipe)
    model, answers = setup.model.train(), setup.objectives["answers"]
    some = documents(16 if bench.quick else 48, model.part("lm").lm.vocabulary)
    tokens, learned = sum(map(len, some)), sum(sum(d.learned) for d in some)
    optimizer = build_optimizer([model], recipe.stages[-1])

    def learner(batches: list[Batch]) -> Learner:
        def loss() -> torch.Tensor:
            passes = [model.encode(b) for b in batches]
            return torch.stack([answers(p) * answers.terms(p) / learned for p in passes]).sum()

        return Learner(model, loss, lambda: None, optimizer.zero_grad, False)  # no update: all contestants keep one model

    contestants = {
        "padded": learner([batch(some, False)]),
        "padded in pieces of 8": learner([batch(some[i : i + 8], False) for i in range(0, len(some), 8)]),
        "packed": learner([batch(some, True)]),
    }
    losses = {name: float(c.forward_backward()) for name, c in contestants.items()}
    bench.compare(
        f"{len(some)} conversations, {tokens} tokens", {n: c.forward_backward for n, c in contestants.items()}, "padded",
        work=tokens, unit="useful tokens", rounds=3, clock="cpu", goals={"packed": 1.5},
    )  # fmt: skip
    apart = max(abs(v / losses["padded"] - 1) for v in losses.values())
    bench.note(f"The relative difference of the losses is at most {apart:.1e}; the goal is 1e-4.")
