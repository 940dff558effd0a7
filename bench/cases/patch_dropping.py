"""Patch dropping (FLIP, Li et al. 2023): training steps of ViT-S/16 at 224 px, 196 patches, with a random half of the patches for
each image, compared with all patches. Captions of 16 tokens; the text tower costs the same in both. Dropped patches are left out
before the stem."""

from __future__ import annotations

from bench.harness import Bench
from bench.models import Learner, images, ours, recipe, token_ids


def learner(precision: str, n: int, share: float) -> Learner:
    made = ours(recipe(precision), images(n), token_ids(n, 16))
    made.model.set_training(patch_dropout=share, gradient_checkpointing=False)
    return made


def run(bench: Bench) -> None:
    n = 4 if bench.quick else 16
    for precision in ("fp32", "bf16"):
        contestants = {name: learner(precision, n, share).step for name, share in (("all patches", 0.0), ("half", 0.5))}
        title = f"{precision}, batch {n}"
        bench.compare(title, contestants, "all patches", work=n, unit="samples", rounds=5, goals={"half": 1.7})
