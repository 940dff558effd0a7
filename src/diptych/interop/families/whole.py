"""A run that tuned a whole model of transformers, as that model: its own class, with what was learned in its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from diptych.core.errors import DiptychError
from diptych.interop.base import Family, Misfit
from diptych.interop.families.language import save_adapters
from diptych.models.adapters.lora import Injected
from diptych.models.language.dialogue import DialogueModel
from diptych.models.pretrained.hub import place

if TYPE_CHECKING:
    from diptych.config.recipe import Recipe
    from diptych.models.vlm import VLM


def whole_model(model: VLM) -> DialogueModel | None:
    """The part that is a whole model of transformers; None: there is none."""
    return next((part for part in model.parts.values() if isinstance(part, DialogueModel)), None)


class Whole(Family):
    """One file of ``save_pretrained`` for weights, configuration and processor. Not among ``FAMILIES``: no other run fits it."""

    name = "whole"
    architecture: ClassVar[str] = "AutoModelForImageTextToText"

    def misfits(self, recipe: Recipe, model: VLM, objectives: nn.ModuleDict) -> list[Misfit]:
        """Empty for a run of such a model."""
        return [] if whole_model(model) else [Misfit("it is not a whole model of transformers")]

    def write(self, directory: Path, model: VLM, objectives: nn.ModuleDict, adapters: str = "") -> list[str]:
        """All files that ``from_pretrained`` loads. adapters: write them next to the model as it was before the run."""
        part = whole_model(model)
        if part is None:
            raise DiptychError("the run is not of a whole model of transformers")
        own: Any = part.model
        if adapters:
            lora = next((a for a in model.adapters.values() if isinstance(a, Injected)), None)
            if lora is None:
                raise DiptychError("this run has no adapters: the model itself learned; export it without --adapters")
            (directory / "adapter").mkdir()
            save_adapters(directory / "adapter", lora, own, adapters)
            own = part.opened()
        part.write(directory, own)
        return [f"It was {place(part.address)}; what it learned is {'in `adapter`' if adapters else 'in the weights'}."]


FAMILY = Whole()
