"""A run that tuned a whole model of transformers, as a ``Model``: that model with what it has learned."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from diptych.config.recipe import Recipe
from diptych.core.files import read_json_or
from diptych.inference.foreign.talk import Talker
from diptych.models.language.dialogue import KIND, DialogueModel
from diptych.models.vlm import VLM
from diptych.training.checkpoint import checkpoint_key, restored
from diptych.training.start.setup import pick_device

REQUEST = "request.json"  # in the run: what its captions were asked with, {"caption": …}


def tuned_part(recipe: Recipe) -> str:
    """The name of the part that is a whole model of transformers; "": none."""
    return next((name for name, part in recipe.parts.items() if part.kind == KIND), "")


class Tuned(Talker):
    """The model of a run. ``key`` names its weights."""

    def __init__(self, run: Path, device: str = "auto", checkpoint: str = "last", batch: int = 8):
        found = restored(run, checkpoint)
        part = found.model.part(tuned_part(found.recipe))
        key = checkpoint_key(found.checkpoint)
        where = pick_device(device)
        asks: dict[str, Any] = read_json_or(run / REQUEST, {})
        given: Any = _Given(run, part, key, where)
        super().__init__(given, batch, "likelihood", str(asks.get("caption", "")))
        self.name, self.place, self.recipe, self.vlm = run.name, run, found.recipe, found.model

    @classmethod
    def load(cls, run: Path, device: str = "auto", checkpoint: str = "last") -> Tuned:
        """The model of a run at a checkpoint: ``last``, ``best`` or ``step-########``."""
        return cls(run, device, checkpoint)

    @contextmanager
    def before(self) -> Iterator[None]:
        """The model as it was before the run, as long as the context is open: without its adapters, or, if it learned itself, with
        the weights that it began with.
        """
        if self.vlm.adapters:
            with untuned(self.vlm):
                yield
            return
        part = self.vlm.part(tuned_part(self.recipe))
        after = {name: value.clone() for name, value in part.model.state_dict().items()}
        try:
            part.model.load_state_dict(part.opened().state_dict())
            yield
        finally:
            part.model.load_state_dict(after)


class _Given:
    """What ``Generative`` asks of ``hub.Opened``, of a model that is there."""

    def __init__(self, run: Path, part: DialogueModel, key: str, device: torch.device):
        self.name, self.part, self.run_key, self.device = str(run), part, key, device
        self.dtype = part.model.dtype

    def model(self, kind: Any) -> Any:
        """The model, on its device."""
        return self.part.model.to(self.device).eval()  # type: ignore[arg-type]

    def processor(self) -> Any:
        """Its processor."""
        return self.part.processor.processor

    def key(self, model: Any, *settings: Any) -> str:
        """Names weights and settings."""
        return hashlib.blake2b(repr((self.run_key, settings)).encode(), digest_size=16).hexdigest()


@contextmanager
def untuned(model: VLM) -> Iterator[None]:
    """A model without its low-rank adapters, as long as the context is open."""
    from diptych.models.adapters.lora import is_adapted

    layers: list[Any] = [m for m in model.modules() if is_adapted(m)]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
