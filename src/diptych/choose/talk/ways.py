"""Ways of tuning a model of transformers that writes text from images: all that ``AutoModelForImageTextToText`` opens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar
from urllib.parse import parse_qsl

from pydantic import Field

from diptych.choose.towers.base import TowerWay
from diptych.choose.towers.model import TowerModel
from diptych.config.budget import Budget
from diptych.core.errors import DiptychError
from diptych.core.registry import check_options, resolve
from diptych.models.language.dialogue import KIND, DialogueModel, Within
from diptych.models.pretrained.hub import fetch, place

PART = "chat"  # the recipe's name of the model
FIELD = "dialogue"
OBJECTIVE = "diptych.objectives.language.dialogue:DialogueAnswers"
OPTIONS = ("revision", "trust_remote_code", "precision")  # of an address


def talks(address: str) -> bool:
    """Whether a model at ``hf:…`` is one of transformers that writes text from images; False for all other addresses. DiptychError
    if there is none at that address.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as GENERATIVE
    from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES as DUAL

    if not address.startswith("hf:"):
        return False
    name, options = split(address)
    config = fetch(AutoConfig, place(name), **{k: v for k, v in options.items() if k != "precision"})
    remote = getattr(config, "auto_map", None) or {}
    return (config.model_type in GENERATIVE and config.model_type not in DUAL) or "AutoModelForImageTextToText" in remote


def split(address: str) -> tuple[str, dict[str, Any]]:
    """``hf:NAME?revision=main`` → the address without options, and the options. DiptychError for one that there is not."""
    name, _, query = address.partition("?")
    given = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := [key for key in given if key not in OPTIONS]:
        raise DiptychError(f"{address}: a model to tune has no option '{unknown[0]}'; it has {', '.join(OPTIONS)}")
    checked = check_options(DialogueModel, {"from": name, **given}, address)
    return name, {key: checked[key] for key in given}


@dataclass(frozen=True, kw_only=True)
class ChatWay(TowerWay):
    """Base class: the loss of the assistant's words (``objectives.language.dialogue``), by AdamW with a cosine.

    on: what learns, or what adapters are put into: language, connector, vision. max_length: tokens of a conversation; too_long:
    ``cut`` or ``refuse`` (``data.fields.dialogue``). micro_batch: conversations read at a time, if not all of a batch;
    checkpointing: layers are computed again in the backward pass, for less memory.
    """

    learns: ClassVar[str] = "conversations"
    merges = True
    score = "similarity"  # of a recipe, without meaning here: the run is opened as a model of transformers
    adapter: ClassVar[str] = ""  # its kind; "": the model itself learns
    batch_size: int = 16
    lr: float = 2e-4
    warmup: float = 0.1
    on: tuple[Within, ...] = ("language",)
    max_length: Annotated[int, Field(ge=8)] = 2048
    too_long: str = "cut"
    micro_batch: Annotated[int, Field(ge=1)] | None = None
    checkpointing: bool = False

    @classmethod
    def opened(cls, address: str) -> TowerModel:
        """The model, as the beginning of a recipe. DiptychError if it does not talk about images."""
        if not talks(address):
            raise DiptychError(
                f"{address}: --way {cls.name} on conversations tunes a model of transformers that writes text from images, "
                "hf:NAME; a run of one is exported first (diptych export RUN), and tuned by hf:RUN/export/transformers"
            )
        name, options = split(address)
        return TowerModel(address, {"parts": {PART: {"kind": KIND, "from": name, **options}}, "data": {}})

    def options(self) -> dict[str, Any]:
        """The options of the adapter."""
        return {}

    def adapters(self, model: TowerModel) -> dict[str, dict[str, Any]]:
        """One, in the model."""
        return {PART: {"kind": self.adapter, **self.options()}} if self.adapter else {}

    def objectives(self, model: TowerModel) -> dict[str, dict[str, Any]]:
        """What the assistant says."""
        return {"answers": {"kind": OBJECTIVE}}

    def train(self, model: TowerModel) -> list[str] | str:
        """The adapter, or the model."""
        return [f"adapters.{PART}"] if self.adapter else [PART]

    def length(self, shots: int, pictures: int, batch: int) -> float:
        """Three epochs, as trl's ``SFTConfig`` has them."""
        return 3.0 * pictures

    def recipe(self, model: TowerModel, data: str, pictures: int, classes: int, budget: Budget | None = None) -> dict[str, Any]:
        """As of other ways, with one part, which brings its weights, words and pictures itself."""
        tree = super().recipe(model, data, pictures, classes, budget)
        part = {**tree["parts"][PART], "adapt": list(self.on)}
        stage = {**tree["stages"][0], **self._pieces(tree["stages"][0]["batch_size"]), "gradient_checkpointing": self.checkpointing}
        field = {"kind": FIELD, "max_length": self.max_length, "too_long": self.too_long}
        read = {"train": data, "tokenizer": {"kind": "lm"}, "fields": {FIELD: field}}
        changed = {"paradigm": "pretrained", "parts": {PART: part}, "stages": [stage], "data": read, "score": self.score}
        return {**{key: value for key, value in tree.items() if key != "weights"}, **changed}

    def _pieces(self, batch: int) -> dict[str, Any]:
        """The micro-batch, of which a batch is a multiple."""
        return {"micro_batch": math.gcd(batch, self.micro_batch)} if self.micro_batch else {}


@dataclass(frozen=True, kw_only=True)
class ChatLora(ChatWay):
    """Low-rank matrices in the linear layers of the language model (Hu et al. 2022); alpha twice the rank, dropout .05 and the
    rate as LLaVA's authors have them.

    targets: endings of the names of the layers, such as q_proj; empty: all.
    """

    name = "lora"
    about = "low-rank matrices in a model that talks about images, which learns to answer as in your conversations"
    cite = "Hu et al. 2022, arXiv:2106.09685; Liu et al. 2024, arXiv:2310.03744"
    adapter = "lora"
    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[int, Field(ge=1)] = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    targets: tuple[str, ...] = ()

    def options(self) -> dict[str, Any]:
        """Rank, alpha, dropout and targets."""
        targets = {"targets": list(self.targets)} if self.targets else {}
        return {"rank": self.rank, "alpha": self.alpha, "dropout": self.dropout, **targets}


@dataclass(frozen=True, kw_only=True)
class ChatDora(ChatLora):
    """As ``lora``, with a learned magnitude of each output (Liu et al. 2024)."""

    name = "dora"
    about = "the same with a learned magnitude for each output"
    cite = "Liu et al. 2024, arXiv:2402.09353"
    adapter = "dora"


@dataclass(frozen=True, kw_only=True)
class ChatFull(ChatWay):
    """The weights themselves, at LLaVA's rate for whole models (Liu et al. 2024)."""

    name = "full"
    about = "all weights of the language model, and of what else --set on names"
    cite = "Liu et al. 2024, arXiv:2310.03744"
    lr: float = 2e-5


CHAT_WAYS: dict[str, type[ChatWay]] = {way.name: way for way in (ChatLora, ChatDora, ChatFull)}


def chat_way(name: str) -> type[ChatWay]:
    """The way of a name. DiptychError for one that there is not."""
    cls: Any = resolve(name, CHAT_WAYS, "way of tuning a model that talks")
    if not (isinstance(cls, type) and issubclass(cls, ChatWay)):
        raise DiptychError(f"--way {name}: for a model that talks about images there are {', '.join(CHAT_WAYS)}")
    return cls


def settings_of(way: type[ChatWay], given: Mapping[str, Any]) -> ChatWay:
    """A way with these settings; a single word for a list is a list of it. DiptychError for a setting that it does not have."""
    lists = {name: [value] for name, value in given.items() if name in ("on", "targets") and isinstance(value, str)}
    return way(**check_options(way, {**given, **lists}, f"--way {way.name}"))
