"""Ways whose learned vectors reach into both towers, or depend on the image: their adapters are in ``models.adapters``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import Field

from diptych.choose.towers.base import TowerWay
from diptych.choose.towers.model import TowerModel
from diptych.choose.towers.ways import CROP, UNLIMITED, Vpt


@dataclass(frozen=True, kw_only=True)
class Prompted(TowerWay):
    """Base class: one adapter of the text part, with the defaults of its kind, and an objective of its own where it has one.

    tokens: learned vectors; None: as many as the adapter has by default.
    """

    merges = False
    adapter: ClassVar[str] = ""  # its kind
    objective: ClassVar[str] = ""  # its kind; "": classification by class names
    tokens: Annotated[int, Field(ge=1)] | None = None
    clip: float = UNLIMITED

    def adapters(self, model: TowerModel) -> dict[str, dict[str, Any]]:
        """One, of the text part; it may change the image tower too."""
        tokens = {} if self.tokens is None else {"tokens": self.tokens}
        return {"text": {"kind": self.adapter, **tokens}}

    def objectives(self, model: TowerModel) -> dict[str, dict[str, Any]]:
        """The adapter's own objective, with the model's scale."""
        return {model.scaled: {"kind": self.objective}} if self.objective else super().objectives(model)


@dataclass(frozen=True, kw_only=True)
class CoCoOp(Prompted):
    """CoOp with a context that depends on the image (Zhou et al. 2022b, §4: four vectors that begin as "a photo of a", SGD at
    0.002, batches of 1, ten epochs, one of warm-up). As in ``coop``, pictures are shown as they are.
    """

    name = "cocoop"
    about = "learned context that depends on the image"
    cite = "Zhou et al. 2022, arXiv:2203.05557"
    score = "cocoop"
    adapter = "cocoop"
    objective = "cocoop"
    template: str = "{}"
    batch_size: int = 1
    optimizer: str = "sgd"
    weight_decay: float = 5e-4
    warmup: float = 1.0

    def length(self, shots: int, pictures: int, batch: int) -> float:
        """Ten epochs."""
        return 10.0 * pictures


@dataclass(frozen=True, kw_only=True)
class MaPLe(Prompted):
    """Learned vectors in both towers and several blocks, those of the images computed from those of the texts (Khattak et al. 2023,
    §4: two vectors, nine blocks, SGD at 0.0035, batches of 4, five epochs, one of warm-up, random crops and flips).
    """

    name = "maple"
    about = "learned vectors in both towers, the image's computed from the text's"
    cite = "Khattak et al. 2023, arXiv:2210.03117"
    adapter = "maple"
    template: str = "{}"
    batch_size: int = 4
    optimizer: str = "sgd"
    lr: float = 3.5e-3
    weight_decay: float = 5e-4
    warmup: float = 1.0
    augment: Any = field(default_factory=lambda: CROP)

    def length(self, shots: int, pictures: int, batch: int) -> float:
        """Five epochs."""
        return 5.0 * pictures


@dataclass(frozen=True, kw_only=True)
class Mmrl(Prompted):
    """A learned space of representations that both towers read from half of their blocks on (Guo & Gu 2025, §4: AdamW at 0.001,
    batches of 4, ten epochs, one of warm-up, random crops and flips).
    """

    name = "mmrl"
    about = "a learned space of representations that both towers read"
    cite = "Guo & Gu 2025, arXiv:2503.08497"
    score = "mmrl"
    adapter = "mmrl"
    objective = "mmrl"
    batch_size: int = 4
    lr: float = 1e-3
    weight_decay: float = 5e-4
    warmup: float = 1.0
    augment: Any = field(default_factory=lambda: CROP)

    def length(self, shots: int, pictures: int, batch: int) -> float:
        """Ten epochs."""
        return 10.0 * pictures


@dataclass(frozen=True, kw_only=True)
class MmrlPlus(Mmrl):
    """MMRL with shared maps, low-rank corrections and vectors that are handed on from block to block (Guo & Gu 2025b)."""

    name = "mmrl++"
    about = "mmrl with shared maps and low-rank corrections"
    cite = "Guo & Gu 2025, arXiv:2505.10088"
    adapter = "mmrl++"


@dataclass(frozen=True, kw_only=True)
class VptDeep(Vpt):
    """VPT with vectors of their own in every block of the image tower (Jia et al. 2022, VPT-deep, §3.2); else as ``vpt``."""

    name = "vpt-deep"
    about = "learned vectors among the patches, in every block"

    def adapters(self, model: TowerModel) -> dict[str, dict[str, Any]]:
        """One, in the image tower."""
        return {"vision": {"kind": "prompt", "tokens": self.count(model), "depth": "all"}}
