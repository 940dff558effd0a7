"""Training steps of the recipe `smaug` (Lin et al. 2023): what hiding patches, leaving out patches on the way and leaving out frames save, in FLOPs and in time, against the same recipe that reads everything.

FLOPs are those of a step forwards and backwards, by torch's formulas for its operators. The paper says 1.9 times or more, of all together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.harness import Bench
from bench.models import Learner, Words
from diptych.config.recipe import load_recipe
from diptych.core.batch import Batch, Images, Texts, Videos
from diptych.models.vlm import build_model
from diptych.objectives import build_objectives
from diptych.training.flops import FlopMeter
from diptych.training.optim import build_optimizer

LENGTH, WORDS, FRAMES, BASE = 16, 4096, 8, "everything"
# What each contestant has of the recipe: patches hidden, patches left out on the way, frames left out.
CONTESTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    BASE: ("smaug@whole", {}),
    "patches and frames left out": ("smaug", {"stages.masked.patch_dropout": 0.0, "stages.masked.objectives.masked_frames": None}),
    "patches hidden": ("smaug@unsparsified", {}),
    "all of it": ("smaug", {}),
}
SIZES: dict[str, tuple[int, int, dict[str, Any]]] = {
    "the recipe as it is: 32 px, patches of 4, 4 blocks of width 128, batch 32": (32, 32, {}),
    "224 px, patches of 16, 12 blocks of width 384, text of 6 blocks, batch 2": (
        224,
        2,
        {
            **{f"parts.vision.{k}": v for k, v in {"patch": 16, "depth": 12, "width": 384, "heads": 6}.items()},
            **{f"parts.text.{k}": v for k, v in {"depth": 6, "width": 384, "heads": 6}.items()},
        },
    ),
}


def learner(name: str, pixels: int, clips: int, overrides: dict[str, Any]) -> Learner:
    """The recipe's main stage on a batch of random clips of eight frames, with captions of 16 tokens."""
    given = {k: v for k, v in overrides.items() if v is not None}
    recipe = load_recipe(name, {"data.image_size": pixels, "precision": "fp32", "data.tokenizer.max_length": LENGTH, **given})
    blocks = len(recipe.parts["vision"].options["layers"])
    depth = recipe.parts["vision"].options["depth"]
    if blocks:  # at the same places of a tower of any depth
        recipe.parts["vision"].options["layers"] = [depth * i // 4 for i in (1, 2, 3)]
    torch.manual_seed(0)
    model = build_model(recipe, Words(WORDS, LENGTH), pixels).train()  # type: ignore[arg-type]
    stage = recipe.stages[0]
    left = [k.rpartition(".")[2] for k, v in overrides.items() if v is None]
    objectives = build_objectives(recipe, model).train()
    chosen = {n: s for n, s in stage.objectives.items() if n not in left}
    optimizer = build_optimizer([model, objectives], stage)
    optimizer.set_rate(1.0)
    model.set_training(stage.patch_dropout, gradient_checkpointing=False)
    owner = torch.arange(clips).repeat_interleave(FRAMES)
    frames = Images(torch.rand(clips * FRAMES, 3, pixels, pixels) * 2 - 1, owner)
    ids = torch.randint(10, WORDS, (clips, LENGTH))
    ids[:, 0], ids[:, -1] = 1, 2
    texts = Texts(ids, ids != 0, (), torch.arange(clips))
    batch = Batch({"video": Videos(frames, torch.zeros(len(owner)), owner), "text": texts}, clips)

    def loss() -> torch.Tensor:
        p = model.encode(batch)
        return sum(s.weight * objectives[n](p) for n, s in chosen.items())  # type: ignore[return-value]

    return Learner(model, loss, optimizer.step, optimizer.zero_grad, False)


def run(bench: Bench) -> None:
    for title, (pixels, clips, sizes) in SIZES.items():
        if bench.quick and pixels > 100:
            continue
        counted: dict[str, float] = {}
        steps: dict[str, Callable[[], Any]] = {}
        for name, (recipe, overrides) in CONTESTANTS.items():
            made = learner(recipe, pixels, clips, {**sizes, **overrides})
            _, counted[name] = FlopMeter().count((name,), made.forward_backward)
            steps[name] = made.step
        rows = [[name, f"{flops / clips / 1e9:.3g}", f"{counted[BASE] / flops:.2f}×"] for name, flops in counted.items()]
        bench.table(["", "GFLOP a clip", f"saved against {BASE}"], rows, f"FLOPs, {title}")
        saved = counted[BASE] / counted["all of it"]
        bench.goal(f"{title}: all of it takes 1 / 1.9 of the FLOPs of {BASE}", f"1 / {saved:.2f}", saved >= 1.9)
        again = counted["patches hidden"] / counted["all of it"]
        bench.note(f"{title}: of the FLOPs with hidden patches, leaving out patches and frames saves a factor of {again:.2f}.")
        bench.compare(title, steps, BASE, work=clips, unit="clips", rounds=5 if pixels < 100 else 3, clock="cpu", goals={"all of it": 1.9})
