"""One dual encoder twice: built by Diptych from a recipe, and by open_clip from its configuration ViT-S-16.

224 px, patches of 16, 77 tokens, both towers width 384, depth 12, 6 heads, 49,408 words, embeddings of 384.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.peers import open_clip
from diptych.config.recipe import Recipe, Stage, load_recipe
from diptych.core.batch import Batch, Images, Texts
from diptych.models.vlm import VLM, build_model
from diptych.objectives import build_objectives
from diptych.training.optim import build_optimizer

VOCABULARY = 49_408


class Words:
    """Stands for a tokenizer where only the size of its vocabulary matters: the benchmarks draw token ids at random."""

    pad, bos, eos, mask = range(4)

    def __init__(self, n: int = VOCABULARY, max_length: int = 77):
        self.n, self.max_length = n, max_length

    def __len__(self) -> int:
        return self.n


def recipe(precision: str = "fp32", objective: str = "info_nce", **overrides: Any) -> Recipe:
    """The recipe ``clip`` at open_clip's ViT-S-16 sizes; ``overrides`` as in ``--set``, with __ for the dots."""
    tower = {"width": 384, "depth": 12, "heads": 6}
    settings = {
        "precision": precision,
        "size": "small",
        "embed_dim": 384,
        "data.image_size": 224,
        "data.tokenizer.max_length": 77,
        "parts.vision": {"kind": "vit", "stem": "patch", "patch": 16, **tower},
        "parts.text": {"kind": "transformer", "causal": True, **tower},  # open_clip's text tower is causal
        "stages": [{"objectives": {objective: 1}, "optimizer": "adamw", "ema": 0}],
    }
    return load_recipe("clip", {**settings, **{k.replace("__", "."): v for k, v in overrides.items()}})


@dataclass
class Learner:
    """A model with its loss and optimizer; ``step()`` is forward, loss, backward and the optimizer's step on one fixed batch."""

    model: nn.Module
    loss: Callable[[], Tensor]
    update: Callable[[], None]
    zero: Callable[[], None]
    autocast: bool

    def forward_backward(self) -> Tensor:
        self.zero()
        with torch.autocast("cpu", torch.bfloat16) if self.autocast else nullcontext():
            loss = self.loss()
        loss.backward()
        return loss.detach()

    def step(self) -> float:
        loss = self.forward_backward()
        self.update()
        return float(loss)


def images(n: int, size: int = 224) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def token_ids(n: int, length: int = 77, filled: int | None = None) -> Tensor:
    """[n, length] random ids with [EOS], the highest, after ``filled`` tokens (None: no padding), as open_clip's tokenizer lays
    them out."""
    filled = filled or length
    ids = torch.randint(4, VOCABULARY - 2, (n, length), generator=torch.Generator().manual_seed(1))
    ids[:, filled - 1] = VOCABULARY - 1
    ids[:, filled:] = 0
    return ids


def ours(r: Recipe, pixels: Tensor, ids: Tensor) -> Learner:
    """Diptych's learner: what ``training.loop`` does for a step, without data, log and gradient clipping (open_clip's default has
    none)."""
    torch.manual_seed(0)
    model: VLM = build_model(r, Words(max_length=r.data.tokenizer.max_length), r.data.image_size or 224)
    objectives = build_objectives(r, model)
    stage: Stage = r.stages[0]
    optimizer = build_optimizer([model, objectives], stage)
    optimizer.set_rate(1.0)
    batch = Batch({"image": Images(pixels), "text": Texts(ids, ids != 0)}, len(pixels))
    model.train()

    def loss() -> Tensor:
        p = model.encode(batch)
        return sum(stage.objectives[name].weight * o(p) for name, o in objectives.items())  # type: ignore[return-value]

    return Learner(model, loss, optimizer.step, optimizer.zero_grad, r.precision == "bf16")


def theirs(precision: str, pixels: Tensor, ids: Tensor, name: str = "ViT-S-16", fused: bool = False) -> Learner:
    """open_clip's learner: model, ClipLoss and AdamW (two groups) as open_clip_train.main makes them by default.

    fused: torch's fused AdamW instead of its default, to tell apart what the model and what the optimizer does.
    """
    oc = open_clip()
    logging.getLogger().setLevel(logging.ERROR)  # it warns of fresh weights, which are what is wanted
    torch.manual_seed(0)
    model = oc.create_model(name, precision="fp32", pretrained=None)
    criterion = oc.ClipLoss()
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    plain = [p for n, p in named if p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n or "logit_scale" in n]
    rest = [p for _, p in named if not any(p is q for q in plain)]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": rest, "weight_decay": 0.2}]
    optimizer = torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.98), eps=1e-6, fused=fused or None)
    model.train()

    def loss() -> Tensor:
        out = model(pixels, ids)
        return criterion(*out) if isinstance(out, tuple) else criterion(**out)

    return Learner(model, loss, optimizer.step, optimizer.zero_grad, precision == "bf16")
