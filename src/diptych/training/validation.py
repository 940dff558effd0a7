"""The loss on held-out samples during training, with the weights that evaluation would use."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch

from diptych.config.recipe import Recipe, Stage
from diptych.core.errors import DiptychError, counted
from diptych.data.order import mixed
from diptych.objectives import Objective
from diptych.training.distributed import Cluster
from diptych.training.optim import Averaged
from diptych.training.start.setup import Setup, loader_of

BATCH = 128  # samples at a time: contrastive losses are within these, for any training batch


class Validator:
    """Fixed samples of the validation part, the same captions and masks each time; every process computes the same number."""

    def __init__(self, recipe: Recipe, setup: Setup, cluster: Cluster, stage: Stage):
        assert recipe.validation is not None
        self.every = recipe.validation.steps
        self.setup, self.device = setup, cluster.device
        source = setup.held_out(stage)
        if len(source) < 2:
            raise DiptychError(
                f"validation: {source.address} has {counted(len(source), 'validation sample')}; use more data or remove validation"
            )
        n = min(recipe.validation.samples, len(source))
        size = min(BATCH, n)
        self.batches = n // size
        self.loader = loader_of(setup, stage, source, size, 0, "none")

    def loss(self, stage: Stage, objectives: Mapping[str, Objective], averaged: Averaged | None) -> float:
        """The weighted loss over the held-out samples, in evaluation mode."""
        s = self.setup
        training = s.model.training
        state = torch.get_rng_state()
        total = 0.0
        s.model.eval()
        with torch.no_grad(), averaged.in_place() if averaged else nullcontext():
            for k in range(self.batches):
                torch.manual_seed(mixed(k))
                with torch.autocast(self.device.type, torch.bfloat16) if s.autocast else nullcontext():
                    p = s.model.encode(self.loader.batch(k).to(self.device))
                    total += sum(stage.objectives[name].weight * float(o(p)) for name, o in objectives.items())
        s.model.train(training)
        torch.set_rng_state(state)
        return total / self.batches
