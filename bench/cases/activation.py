"""gelu or relu in the recipe `clip` at size `tiny` (1 M parameters, 48 px, width 128, depth 2): whole training steps in bf16."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from bench.harness import Bench
from bench.models import Learner, images, ours, token_ids
from diptych.config.recipe import load_recipe


def learner(activation: Callable[[], nn.Module], n: int) -> Learner:
    recipe = load_recipe("clip", {"precision": "bf16", "data.image_size": 48})
    made = ours(recipe, images(n, 48), token_ids(n, 20) % 4000)
    for module in list(made.model.modules()):
        if isinstance(module, nn.Sequential):
            for i, layer in enumerate(module):
                if isinstance(layer, nn.ReLU):
                    module[i] = activation()
    return made


def run(bench: Bench) -> None:
    n = 32 if bench.quick else 128
    contestants = {name: learner(kind, n).step for name, kind in (("gelu", nn.GELU), ("relu", nn.ReLU))}
    bench.compare(f"batch {n}", contestants, "gelu", work=n, unit="samples", rounds=15)
