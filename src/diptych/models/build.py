"""What a part knows of the rest of the model while it is built."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from diptych.core.errors import DiptychError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Size:
    """The default sizes of parts."""

    width: int
    depth: int  # of a tower; fusion and decoder are as deep
    heads: int
    embed_dim: int
    activation: str
    image_size: int  # if the data and the tower have none


SIZES = {
    # About 1 M parameters: minutes on a laptop. relu, because at this size gelu takes a noticeable share of a step on a CPU.
    "tiny": Size(128, 2, 4, 128, "relu", 64),
    "small": Size(384, 6, 6, 256, "gelu", 128),
    "base": Size(768, 12, 12, 512, "gelu", 224),
}


@dataclass
class Build:
    """Handed to every part's constructor. ``parts`` holds the parts built so far, in the order of ``config.recipe.PARTS``."""

    size: Size
    image_size: int
    tokenizer: Any  # None until a part that brings its own (a language model) is built
    corpus: list[str] = field(default_factory=list)  # training captions; empty when a saved tokenizer is given
    kept: list[int] | None = None  # ids that an earlier trim of a language model's vocabulary kept
    max_length: int = 32  # of a text, in tokens
    embed_dim: int = 0  # of the shared space
    parts: dict[str, nn.Module] = field(default_factory=dict)
    where: str = ""  # the recipe key under construction, for messages
    adapted: bool = False  # whether the part under construction gets an adapter
    frozen: bool = False  # whether the part under construction keeps its weights in every stage
    licences: list[str] = field(default_factory=list)  # pretrained parts in use

    def require(self, condition: bool, message: str) -> None:
        """DiptychError with the recipe key under construction, unless the condition holds."""
        if not condition:
            raise DiptychError(f"{self.where}: {message}")

    def width_of(self, part: str) -> int:
        """Width of a part that this one builds on."""
        self.require(part in self.parts, f"needs a part '{part}', which the recipe does not have")
        return int(self.parts[part].width)  # type: ignore[arg-type]
