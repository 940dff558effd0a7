"""A way that leaves both towers as they are and learns to read their tokens together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from diptych.choose.towers.base import TowerWay
from diptych.choose.towers.model import TowerModel
from diptych.config.budget import Budget


@dataclass(frozen=True, kw_only=True)
class Cola(TowerWay):
    """The multimodal adapter of Cola (Ray et al. 2023, §3): a transformer of two layers over the frozen tokens of image and text,
    of which a linear map says whether they belong together. The model that results scores by it; its vectors stay.

    Wrong pairs are those of the batch that the towers take for similar (as in the objective ``matching``). Left out: the paper's
    further wrong texts with switched attributes, and its form that compares the fused vector with the frozen text vector. Rate,
    length and batch are ours.

    form: ``joint``, one encoder over both; ``cross``, self-attention within each side and attention to the other. layers: of it.
    """

    name = "cola"
    about = "a small transformer over the frozen tokens of image and text says whether they belong together"
    cite = "Ray et al. 2023, arXiv:2305.03689"
    learns = "captions"
    score = "matching"
    merges = False
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 1.0
    form: Literal["joint", "cross"] = "joint"
    layers: Annotated[int, Field(ge=1)] = 2

    def objectives(self, model: TowerModel) -> dict[str, dict[str, Any]]:
        """A two-way classifier of right and wrong pairs."""
        return {"matching": {"kind": "matching", "pooler": "none"}}

    def train(self, model: TowerModel) -> list[str] | str:
        """The transformer, and the objective's linear map."""
        return ["fusion"]

    def recipe(self, model: TowerModel, data: str, pictures: int, classes: int, budget: Budget | None = None) -> dict[str, Any]:
        """As of other ways, with frozen towers and the transformer."""
        tree = super().recipe(model, data, pictures, classes, budget)
        parts = {name: {**part, "frozen": True} for name, part in tree["parts"].items()}
        parts.setdefault("space", {"kind": "linear", "frozen": True})
        return {**tree, "parts": {**parts, "fusion": {"kind": self.form, "depth": self.layers}}}
