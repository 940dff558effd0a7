"""What a way of adapting is that trains a tower or its prompts: a recipe that starts from the model's weights.

Its result is a run like any other: it can be evaluated, exported, served, and adapted further.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from diptych.choose.towers.heads import class_head
from diptych.choose.towers.model import TowerModel, tower_model
from diptych.config.budget import Budget
from diptych.inference.heads import Head
from diptych.inference.run import TrainedModel

TEMPLATE = "a photo of a {}"


@dataclass(frozen=True, kw_only=True)
class TowerWay:
    """Base class: a frozen dataclass whose fields are its settings, with the paper's values as defaults. Nothing is chosen by
    trial.

    template: the text of a class name. epochs: None: as many as the paper has for this number of pictures (``length``). warmup:
    epochs in which the rate rises. clip: the largest norm of the gradient. augment: of the pictures, as in ``data.augment``.
    """

    name: ClassVar[str] = ""
    about: ClassVar[str] = ""
    cite: ClassVar[str] = ""
    learns: ClassVar[str] = "classes"  # or captions: from pictures with texts of their own
    score: ClassVar[str] = "similarity"  # of the recipe
    slow: ClassVar[bool] = False  # whether naming a picture takes many times as long as training on it: tried only if named
    merges: ClassVar[bool] = True  # whether the result has plain towers, so that other libraries can load it

    template: str = TEMPLATE
    batch_size: int = 32
    epochs: int | None = None
    lr: float = 2e-3
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    warmup: float = 0.0
    clip: float = 1.0
    augment: Any = "none"
    hold: float = 0.0  # the share of the few pictures that is held out, for a choice that the way makes

    # --- what a subclass says ---

    @classmethod
    def opened(cls, address: str) -> TowerModel:
        """The model at an address, as the beginning of a recipe. DiptychError if the way cannot adapt it."""
        return tower_model(address)

    def adapters(self, model: TowerModel) -> dict[str, dict[str, Any]]:
        """Adapters by name, as in a recipe. Empty: the towers themselves learn."""
        return {}

    def objectives(self, model: TowerModel) -> dict[str, dict[str, Any]]:
        """Objectives by name, as in a recipe: classification by class names, with the model's own scale."""
        bias = {"bias": True} if model.contrast == "sigmoid" else {}
        return {model.scaled: {"kind": "class_names", **bias}}

    def teachers(self, model: TowerModel) -> dict[str, dict[str, Any]]:
        """Teachers by name, as in a recipe."""
        return {}

    def train(self, model: TowerModel) -> list[str] | str:
        """What learns: its adapters, or everything."""
        return [f"adapters.{name}" for name in self.adapters(model)] or "all"

    def length(self, shots: int, pictures: int, batch: int) -> float:
        """How many samples the paper trains for. shots: pictures of a class, pictures: of all classes."""
        return 10.0 * pictures

    def head(self, model: TrainedModel, names: Sequence[str], template: str) -> Head:
        """How the run names the classes."""
        return class_head(model, names, template)

    # --- the recipe ---

    def recipe(self, model: TowerModel, data: str, pictures: int, classes: int, budget: Budget | None = None) -> dict[str, Any]:
        """The recipe as plain data. data: the address of the training data, which has so many pictures and classes. budget: what
        may be spent; the paper's length is the limit beside it.
        """
        batch = max(1, min(self.batch_size, pictures))
        adapters = self.adapters(model)
        shots = math.ceil(pictures / max(1, classes))
        length = self.epochs * pictures if self.epochs is not None else self.length(shots, pictures, batch)
        tree = model.tree
        frozen = {"frozen": True} if adapters else {}
        parts = {name: {**part, **frozen} for name, part in tree["parts"].items()}
        if frozen:
            parts.setdefault("space", {"kind": "linear", "frozen": True})
        whole = limited(budget, max(length, batch))
        return {
            "name": self.name,
            "about": f"{self.about}, of {model.address}",
            "cite": self.cite,
            "paradigm": "contrastive",
            "weights": model.address,
            **{key: tree[key] for key in ("size", "embed_dim") if key in tree},
            "data": {
                "train": data,
                **tree["data"],
                "augment": self.augment,
                **({"fields": {"label": {"kind": "label", "template": self.template}}} if self.learns == "classes" else {}),
            },
            "parts": parts,
            "adapters": adapters,
            "teachers": self.teachers(model),
            "stages": [
                {
                    "train": self.train(model),
                    "objectives": self.objectives(model),
                    "batch_size": batch,
                    "optimizer": self.optimizer,
                    "lr": self.lr,
                    "betas": [0.9, 0.999],
                    "weight_decay": self.weight_decay,
                    "warmup": self.steps_of_warmup(pictures, batch, whole),
                    "schedule": "cosine",
                    "clip": self.clip,
                    "ema": 0,
                }
            ],
            "score": self.score,
            "trackers": [],
            "budget": whole,
        }

    def steps_of_warmup(self, pictures: int, batch: int, budget: Mapping[str, float]) -> int:
        """The steps of ``warmup`` epochs, but at most a tenth of those that the budget has, and 500; 50 where it limits the time,
        which may be few steps.
        """
        steps = min(budget["samples"] / batch, budget.get("steps", math.inf))
        most = 50 if "seconds" in budget else 500
        return int(min(round(self.warmup * math.ceil(pictures / batch)), round(steps / 10), most))


def limited(budget: Budget | None, samples: float) -> dict[str, float]:
    """A budget with at most so many samples, as plain data."""
    given: Mapping[str, float | None] = asdict(budget) if budget else {}
    limits = {unit: amount for unit, amount in given.items() if amount is not None}
    return {**limits, "samples": min(samples, limits.get("samples", samples))}
