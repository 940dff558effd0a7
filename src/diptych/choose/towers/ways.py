"""The ways that train a tower or its prompts, with the settings of their papers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from diptych.choose.towers.base import TowerWay
from diptych.choose.towers.model import TowerModel
from diptych.core.errors import DiptychError

CROP: dict[str, Any] = {"crop": {"scale": [0.08, 1.0]}, "flip": 0.5}
UNLIMITED = 1e6  # a norm of the gradient that is never reached
Side = Literal["both", "vision", "text"]


def sides(which: Side) -> tuple[str, ...]:
    """The parts of ``both`` or of one side."""
    return ("vision", "text") if which == "both" else (which,)


@dataclass(frozen=True, kw_only=True)
class CoOp(TowerWay):
    """Context vectors before the class name, which all classes share; the name stands at the end (Zhou et al. 2022, §3.2 and §4.1:
    16 vectors, SGD at 0.002, batches of 32, one epoch of warm-up; 50 epochs for one picture of a class, 100 for two or four, 200
    for more).

    The paper crops and flips the pictures. Here they are shown as they are, so that the frozen image tower sees each once; set
    ``augment`` for the paper's. words: the vectors begin as those of these words, such as "a photo of a".
    """

    name = "coop"
    about = "learned context before the class names"
    cite = "Zhou et al. 2022, arXiv:2109.01134"
    merges = False
    template: str = "{}"
    optimizer: str = "sgd"
    weight_decay: float = 5e-4
    warmup: float = 1.0
    clip: float = UNLIMITED
    tokens: Annotated[int, Field(ge=1)] = 16
    words: str = ""

    def adapters(self, model: TowerModel) -> dict[str, dict[str, Any]]:
        """One, in the text tower; fewer vectors where texts have little room."""
        if self.words:
            return {"text": {"kind": "prompt", "words": self.words}}
        return {"text": {"kind": "prompt", "tokens": max(1, min(self.tokens, model.length // 2))}}

    def length(self, shots: int, pictures: int, batch: int) -> float:
        """By the number of pictures of a class."""
        return pictures * (50 if shots == 1 else 100 if shots <= 4 else 200)


@dataclass(frozen=True, kw_only=True)
class CoOpPerClass(CoOp):
    """CoOp with context vectors of its own for each class (Zhou et al. 2022, §3.2, class-specific context); else as ``coop``. Other
    classes are read without a context, as the model reads them.
    """

    name = "coop-class"
    about = "learned context before the class names, another one for each class"

    def adapters(self, model: TowerModel) -> dict[str, dict[str, Any]]:
        """One, in the text tower; fewer vectors where texts have little room. DiptychError for ``words``."""
        if self.words:
            raise DiptychError("--way coop-class: words: the contexts of classes begin at random, as the authors have them")
        count = max(1, min(self.tokens, model.length // 2))
        return {"text": {"kind": "class_prompt", "classes": list(model.classes), "tokens": count, "template": self.template}}


@dataclass(frozen=True, kw_only=True)
class Vpt(TowerWay):
    """Learned vectors among the patches of the image tower's input (Jia et al. 2022, VPT-shallow, §3.2; SGD with cosine, 100
    epochs). The classes are their names' text vectors, not a new linear head. Rate and decay are those of CoOp: the paper chooses
    them for each data set by validation.

    tokens: None: 50, the authors' default for 196 patches, or a quarter of the patches where that is less.
    """

    name = "vpt"
    about = "learned vectors among the patches"
    cite = "Jia et al. 2022, arXiv:2203.12119"
    merges = False
    optimizer: str = "sgd"
    weight_decay: float = 1e-4
    warmup: float = 10.0
    clip: float = UNLIMITED
    augment: Any = "crop"
    tokens: Annotated[int, Field(ge=1)] | None = None

    def count(self, model: TowerModel) -> int:
        """How many vectors."""
        return self.tokens or max(1, min(50, model.patches // 4))

    def adapters(self, model: TowerModel) -> dict[str, dict[str, Any]]:
        """One, in the image tower."""
        return {"vision": {"kind": "prompt", "tokens": self.count(model)}}

    def length(self, shots: int, pictures: int, batch: int) -> float:
        """100 epochs."""
        return 100.0 * pictures


@dataclass(frozen=True, kw_only=True)
class Lora(TowerWay):
    """Low-rank matrices beside the queries, keys and values of every block (CLIP-LoRA, Zanella & Ben Ayed 2024, §4: rank 2, alpha
    1, dropout .25, AdamW at 2e-4, decay .01, batches of 32, 500 steps for each picture of a class, random crops and flips). Keys
    and values are one matrix here, so they share their rank.

    on: both towers, or one. targets: endings of layer names; empty: all linear layers.
    """

    name = "lora"
    about = "low-rank matrices in the towers"
    cite = "Hu et al. 2022, arXiv:2106.09685; Zanella & Ben Ayed 2024, arXiv:2405.18541"
    lr: float = 2e-4
    weight_decay: float = 1e-2
    clip: float = UNLIMITED
    augment: Any = field(default_factory=lambda: CROP)
    rank: Annotated[int, Field(ge=1)] = 2
    alpha: Annotated[int, Field(ge=1)] = 1
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.25
    on: Side = "both"
    targets: tuple[str, ...] = ("attention.q", "attention.kv")

    def kind(self) -> dict[str, Any]:
        """The adapter of a tower, as in a recipe."""
        return {"kind": "lora", "rank": self.rank, "alpha": self.alpha, "dropout": self.dropout}

    def adapters(self, model: TowerModel) -> dict[str, dict[str, Any]]:
        """One for each tower."""
        targets = {"targets": list(self.targets)} if self.targets else {}
        return {side: {**self.kind(), **targets} for side in sides(self.on)}

    def length(self, shots: int, pictures: int, batch: int) -> float:
        """500 steps for each picture of a class."""
        return 500.0 * shots * batch


@dataclass(frozen=True, kw_only=True)
class Dora(Lora):
    """LoRA with a learned magnitude for each output; the other settings are LoRA's (Liu et al. 2024 keep them too)."""

    name = "dora"
    about = "low-rank directions and learned magnitudes in the towers"
    cite = "Liu et al. 2024, arXiv:2402.09353"

    def kind(self) -> dict[str, Any]:
        """The adapter of a tower, as in a recipe."""
        return {**super().kind(), "kind": "dora"}


@dataclass(frozen=True, kw_only=True)
class Vera(Lora):
    """Random matrices that all layers share, scaled by learned vectors (Kopiczko et al. 2024: rank 256, ten times the rate of
    LoRA); the other settings are those of CLIP-LoRA.
    """

    name = "vera"
    about = "learned scales of shared random matrices in the towers"
    cite = "Kopiczko et al. 2024, arXiv:2310.11454"
    lr: float = 2e-3
    rank: Annotated[int, Field(ge=1)] = 256
    d: Annotated[float, Field(gt=0)] = 0.1

    def kind(self) -> dict[str, Any]:
        """The adapter of a tower, as in a recipe."""
        return {"kind": "vera", "rank": self.rank, "d": self.d, "dropout": self.dropout}


@dataclass(frozen=True, kw_only=True)
class Full(TowerWay):
    """All weights of both towers, by cross-entropy over the class names (the fine-tuning of WiSE-FT, Wortsman et al. 2022,
    appendix: AdamW at 3e-5, decay .1, batches of 512, ten epochs, cosine). The paper has 500 steps of warm-up; here they are at
    most a tenth.
    """

    name = "full"
    about = "all weights of both towers, by class names"
    cite = "Wortsman et al. 2022, arXiv:2109.01903"
    batch_size: int = 512
    lr: float = 3e-5
    weight_decay: float = 0.1
    warmup: float = 1.0
    augment: Any = "crop"

    def length(self, shots: int, pictures: int, batch: int) -> float:
        """Ten epochs."""
        return 10.0 * pictures


@dataclass(frozen=True, kw_only=True)
class Flyp(TowerWay):
    """All weights, by the loss of pretraining on captions made of class names (Goyal et al. 2023: AdamW at 1e-5, decay .2, batches
    of 256, 20 epochs, the values of their few-shot runs).

    same: captions of the same class in a batch: ``keep`` counts them as negatives, as the authors' code does; ``mask`` leaves them
    out.
    """

    name = "flyp"
    about = "all weights, by the loss of pretraining on class captions"
    cite = "Goyal et al. 2023, arXiv:2212.00638"
    batch_size: int = 256
    lr: float = 1e-5
    weight_decay: float = 0.2
    augment: Any = "crop"
    same: Literal["keep", "mask"] = "keep"

    def objectives(self, model: TowerModel) -> dict[str, dict[str, Any]]:
        """The model's own contrastive loss, with its own scale, which learns."""
        return {model.scaled: {"kind": model.contrast, "false_negatives": self.same}}

    def length(self, shots: int, pictures: int, batch: int) -> float:
        """20 epochs."""
        return 20.0 * pictures


@dataclass(frozen=True, kw_only=True)
class Captions(TowerWay):
    """All weights, by the loss of pretraining on captions of one's own, beside a term that keeps the model near what it was (after
    ZSCL, Zheng et al. 2023, §4.1: rate 1e-5; its reference pictures are here those of the batch).

    keep: the weight of that term; 0: none. of: what is kept, as in the objective ``distillation``. epochs: ten.
    """

    name = "captions"
    about = "all weights, on captions, near what the model was"
    cite = "Radford et al. 2021, arXiv:2103.00020; Zheng et al. 2023, arXiv:2303.06628"
    learns = "captions"
    batch_size: int = 64
    lr: float = 1e-5
    weight_decay: float = 0.1
    warmup: float = 1.0
    augment: Any = "crop"
    keep: Annotated[float, Field(ge=0)] = 1.0
    of: Literal["similarities", "vectors"] = "similarities"

    def objectives(self, model: TowerModel) -> dict[str, dict[str, Any]]:
        """The model's own contrastive loss, and distillation from the model as it was."""
        kept = {"distillation": {"weight": self.keep, "of": self.of}} if self.keep else {}
        return {model.scaled: {"kind": model.contrast}, **kept}

    def teachers(self, model: TowerModel) -> dict[str, dict[str, Any]]:
        """The model as it was."""
        return {"base": {"from": "start"}} if self.keep else {}


@dataclass(frozen=True, kw_only=True)
class WiseFt(Full):
    """The mean of the weights before and after ``full``: (1 − alpha) θ_0 + alpha θ_1 (Wortsman et al. 2022, eq. 1).

    alpha: the share of the fine-tuned weights; the paper recommends .5 where nothing chooses it. ``held-out``: a quarter of the few
    pictures of each class are held out, and choose it among 0, .1, …, 1; where a class has one picture, .5 stays.
    """

    name = "wise-ft"
    about = "the mean of the weights before and after full fine-tuning"
    cite = "Wortsman et al. 2022, arXiv:2109.01903"
    alpha: Annotated[float, Field(ge=0, le=1)] | Literal["held-out"] = 0.5

    def __post_init__(self) -> None:
        if self.alpha == "held-out" and not self.hold:
            object.__setattr__(self, "hold", 0.25)
