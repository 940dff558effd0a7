"""Ways that adapt a language model which reads images: to write the name of the class as the caption.

A run such as ``llava``, ``frozen`` or ``flamingo``, of which nothing but an adapter of the language model learns. A class is scored
by the likelihood of its text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from diptych.choose.towers.base import TowerWay
from diptych.choose.towers.heads import class_texts
from diptych.choose.towers.model import TowerModel
from diptych.config.budget import Budget
from diptych.core.errors import DiptychError
from diptych.core.files import read_json
from diptych.inference.heads import Head, Texts
from diptych.inference.run import TrainedModel
from diptych.training.start.initialize import RunStart, open_start


def language_model(address: str) -> TowerModel:
    """The run at an address, as the beginning of a recipe with all of its parts. DiptychError if no language model in it reads
    images.
    """
    start = open_start(address)
    if not isinstance(start, RunStart) or start.only:
        raise DiptychError(f"{address}: ways that adapt a language model need a whole run of ours, such as one of llava or frozen")
    recipe = start.recipe
    if recipe.adapters:
        raise DiptychError(f"{address} has adapters already ({', '.join(recipe.adapters)}); give the run that it began from")
    if "lm" not in recipe.parts or recipe.score != "likelihood":
        raise DiptychError(
            f"{address}: a run of '{recipe.name}' with the parts {', '.join(recipe.parts)}, scored by {recipe.score}; this way "
            "needs one with a language model (parts.lm) that reads images and scores texts by likelihood"
        )
    parts = {
        name: {"kind": part.kind, **part.options, **({"fields": part.fields} if part.fields else {})}
        for name, part in recipe.parts.items()
    }
    tree = {
        "size": recipe.size,
        "embed_dim": recipe.embed_dim,
        "data": {
            "image_size": read_json(start.run / "model.json")["image_size"],
            "tokenizer": recipe.data.tokenizer.model_dump(mode="json"),
        },
        "parts": parts,
    }
    return TowerModel(str(start.address), tree)


@dataclass(frozen=True, kw_only=True)
class Answers(TowerWay):
    """Base class: an adapter of ``parts.lm``, trained by the next-token loss on the text of each picture's class. Batches, length
    and warm-up are ours: the papers train on millions of captions.
    """

    merges = False
    score = "likelihood"
    adapter: ClassVar[str] = ""  # its kind
    batch_size: int = 16
    lr: float = 1e-3
    warmup: float = 1.0

    @classmethod
    def opened(cls, address: str) -> TowerModel:
        """The run."""
        return language_model(address)

    def options(self) -> dict[str, Any]:
        """The options of the adapter."""
        return {}

    def adapters(self, model: TowerModel) -> dict[str, dict[str, Any]]:
        """One, in the language model."""
        return {"lm": {"kind": self.adapter, **self.options()}}

    def objectives(self, model: TowerModel) -> dict[str, dict[str, Any]]:
        """The loss of captioning, the caption of a picture being the text of its class."""
        return {"next_token": {"kind": "next_token"}}

    def recipe(self, model: TowerModel, data: str, pictures: int, classes: int, budget: Budget | None = None) -> dict[str, Any]:
        """As of other ways, without a shared space."""
        tree = super().recipe(model, data, pictures, classes, budget)
        parts = {name: part for name, part in tree["parts"].items() if name in model.tree["parts"]}
        return {**tree, "paradigm": "pretrained", "parts": parts}

    def head(self, model: TrainedModel, names: Sequence[str], template: str) -> Head:
        """Log-likelihoods of the texts of the classes, in nats, are the logits."""
        return Texts(tuple(class_texts(model, names, template)), 1.0)


@dataclass(frozen=True, kw_only=True)
class LmLora(Answers):
    """Low-rank matrices in all linear layers of the language model (Hu et al. 2022; rank, alpha and dropout as LLaVA's authors have
    them for fewer parameters: alpha twice the rank, dropout .05, rate 2e-4, of which the rank here is 8).
    """

    name = "lm-lora"
    about = "low-rank matrices in the language model, which learns to write the class"
    cite = "Hu et al. 2022, arXiv:2106.09685; Liu et al. 2024, arXiv:2310.03744"
    adapter = "lora"
    lr: float = 2e-4
    rank: Annotated[int, Field(ge=1)] = 8
    alpha: Annotated[int, Field(ge=1)] = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05

    def options(self) -> dict[str, Any]:
        """Rank, alpha and dropout."""
        return {"rank": self.rank, "alpha": self.alpha, "dropout": self.dropout}


@dataclass(frozen=True, kw_only=True)
class LmLlamaAdapter(Answers):
    """Prefixes with zero-initialised gates in the upper layers, and the scales and biases of LLaMA-Adapter V2 (Zhang et al. 2024;
    Gao et al. 2023: ten vectors, AdamW, decay .02).
    """

    name = "llama-adapter"
    about = "gated prefixes, scales and biases in the language model, which learns to write the class"
    cite = "Zhang et al. 2024, arXiv:2303.16199; Gao et al. 2023, arXiv:2304.15010"
    adapter = "llama_adapter"
    weight_decay: float = 0.02
    tokens: Annotated[int, Field(ge=1)] = 10
    unlock: bool = True

    def options(self) -> dict[str, Any]:
        """Vectors, and whether scales and biases learn too."""
        return {"tokens": self.tokens, "unlock": self.unlock}


@dataclass(frozen=True, kw_only=True)
class LmVlAdapter(Answers):
    """Bottlenecks behind attention and MLP of every layer (VL-Adapter, Sung et al. 2022, §3.2, single adapter; width D / 8, AdamW
    at 0.001, decay .01).
    """

    name = "vl-adapter"
    about = "bottlenecks in every layer of the language model, which learns to write the class"
    cite = "Sung et al. 2022, arXiv:2112.06825"
    adapter = "bottleneck"
    weight_decay: float = 0.01
    reduction: Annotated[int, Field(ge=1)] = 8

    def options(self) -> dict[str, Any]:
        """The width."""
        return {"reduction": self.reduction}
