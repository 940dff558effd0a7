"""A little model, its objectives and a loader, for tests of the engine; also runnable as one of several processes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from diptych.config.recipe import load_recipe
from diptych.core.registry import option_names, resolve
from diptych.data.fields import UNPAIRED
from diptych.data.loader import loader_for
from diptych.data.sources import open_source
from diptych.data.text import Tokenizer, tokenizer_class
from diptych.models.vlm import KINDS, build_model
from diptych.objectives import build_objectives, fields_needed
from diptych.training.distributed import Cluster
from diptych.training.flops import FlopMeter
from diptych.training.gradient import BatchGradient, Pieces, Share
from diptych.training.start.setup import corpus_of
from diptych.training.start.teachers import add_teachers

TINY = [*(f"parts.{part}.{key}" for part in ("vision", "text") for key in ("depth=1", "width=32", "heads=2")), "precision=fp32"]


def tiny(name: str) -> list[str]:
    """``TINY``, as far as the recipe has these parts and they learn."""
    parts = {n: part for n, part in load_recipe(name).parts.items() if not part.frozen}
    known = {n: option_names(resolve(part.kind, KINDS[n], n)) for n, part in parts.items() if n in ("vision", "text")}
    return [o for o in TINY if not o.startswith("parts.") or o.split(".")[2].partition("=")[0] in known.get(o.split(".")[1], ())]


class Little:
    """A recipe's model and loader on scenes; ``gradients`` of one step, however the batch is cut."""

    def __init__(self, name: str, *overrides: str, batch_size: int = 12, stage: str = ""):
        self.recipe = load_recipe(name, [*tiny(name), *overrides])
        data = self.recipe.data.train
        of_clips = data.startswith(("scenes:clips", "stills:", "joined:"))
        source = open_source(data.replace("size=32", "size=48") if of_clips else "scenes:small").split("train")
        torch.manual_seed(0)
        made = tokenizer_class(self.recipe.data.tokenizer.kind) or Tokenizer
        own = made.train(corpus_of(source, 200), 400, self.recipe.data.tokenizer.max_length)
        self.model = build_model(self.recipe, own, 48).train()
        self.tokenizer = self.model.tokenizer  # a language model brings another
        for part in self.model.parts.values():
            if hasattr(part, "codebook") and hasattr(part.codebook, "collect"):  # as an earlier stage fills it
                part.codebook.collect(torch.randn(part.codebook.samples, part.width))
        add_teachers(self.recipe, self.model)
        self.objectives = build_objectives(self.recipe, self.model).train()
        chosen = next(s for s in self.recipe.stages if stage in ("", s.name))
        if chosen.train != "all":
            self.model.freeze(set(self.model.parts) - set(chosen.train))
        self.model.set_training(chosen.patch_dropout, chosen.gradient_checkpointing)
        self.weights = {n: s.weight for n, s in chosen.objectives.items()}
        self.objectives = torch.nn.ModuleDict({n: self.objectives[n] for n in self.weights})
        self.meter = FlopMeter()
        fields = fields_needed(self.objectives.values(), self.model)  # type: ignore[arg-type]
        read = tuple(f for f in fields if f not in UNPAIRED)
        self.loader = loader_for(source, self.tokenizer, 48, batch_size, 0, fields=read, own=self.recipe.data.fields)

    def compile(self, backend: str = "inductor") -> None:
        """As ``compile: true`` does, which takes torch's usual backend."""
        self.meter = FlopMeter(compiled=True)
        self.model.compile_parts(backend)

    def step(self, micro: int | None, cluster: Cluster | None = None):
        cluster = cluster or Cluster()
        for p in self.parameters().values():
            p.grad = None
        gradient = BatchGradient(self.model, cluster, False, 0, self.meter)
        return gradient(0, Pieces(Share(self.loader, 0, cluster, micro), 0), self.objectives, self.weights)

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        both = torch.nn.ModuleList([self.model, self.objectives])
        return {n: p for n, p in both.named_parameters() if p.requires_grad}

    def gradients(self, micro: int | None) -> dict[str, torch.Tensor]:
        self.step(micro)
        return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in self.parameters().items()}


def colours(images):
    """The mean colour of pictures, uint8 [N, H, W, 3]: features for ``data.neighbours`` that need no model."""
    return images.reshape(len(images), -1, 3).mean(1) - 127.0


if __name__ == "__main__":  # a process of a cluster: train recipes into directories
    from diptych.training.loop import train

    torch.distributed.init_process_group("gloo")
    for name, out, overrides, *resume in json.loads(sys.argv[1]):
        train(load_recipe(name, [*tiny(name), *overrides]), Path(out), resume=bool(resume))
    torch.distributed.barrier()  # no process ends while another still writes or waits
    torch.distributed.destroy_process_group()
