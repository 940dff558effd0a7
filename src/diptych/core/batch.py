"""The things that flow: a ``Sample`` from a source, a ``Batch`` into a model, ``Tokens`` out of a tower.

Shape legend, used everywhere: B batch, N image tokens, T text tokens, D width, H heads, E embedding, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


IMAGE = "<image>"  # stands in a turn's text where an image is shown


class Turn(NamedTuple):
    """What one side says in a conversation."""

    role: str  # system, user or assistant
    text: str


@dataclass
class Sample:
    """One image with the texts that belong to it.

    ``meanings`` runs parallel to ``captions``: captions with the same meaning string say the same thing, so a
    contrastive loss does not count one as a negative of the other. A source that knows no better leaves it empty,
    and the caption's own normalised text is its meaning.
    ``negatives`` runs parallel to ``captions`` where the source knows a minimally wrong version of each ("" if none).
    """

    id: str
    image: np.ndarray | None  # uint8 [height, width, 3], RGB
    captions: list[str]
    meanings: list[str] = field(default_factory=list)
    negatives: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)  # labels, boxes, questions …: whatever the source knows
    turns: list[Turn] = field(default_factory=list)  # a conversation about the image, or about ``images``
    images: list[np.ndarray] = field(default_factory=list)  # of a conversation about several; ``image`` is then the first


@dataclass
class Tokens:
    """What a tower says of its input."""

    tokens: Tensor  # [B, N, D]
    pooled: Tensor  # [B, D]
    mask: Tensor | None = None  # [B, N] bool, True where a token is real; None: all are

    def __getitem__(self, index: Tensor) -> Tokens:
        """Rows of the batch, in the order of ``index``."""
        return Tokens(self.tokens[index], self.pooled[index], None if self.mask is None else self.mask[index])


@dataclass
class Batch:
    """One batch on one device. ``None`` stands for what the recipe did not ask for."""

    pixels: Tensor | None = None  # [B, 3, height, width] uint8 from a loader; ``floats`` of it is what towers take
    text: Tensor | None = None  # [B, T] int64 token ids: [BOS] words [EOS] [PAD]…
    text_mask: Tensor | None = None  # [B, T] bool, True at real tokens
    negatives: Tensor | None = None  # [M, T] ids of hard negatives, of the captions that have one
    negatives_mask: Tensor | None = None  # [M, T]
    negative_rows: Tensor | None = None  # [M] int64, the row whose caption each belongs to
    lone_pixels: Tensor | None = None  # [U, 3, height, width] images that came without a caption
    lone_text: Tensor | None = None  # [W, T] ids of texts that came without an image
    lone_mask: Tensor | None = None  # [W, T]
    learned: Tensor | None = None  # [R, T] bool: tokens of conversations to be learned; their text is -1 where an image token goes
    positions: Tensor | None = None  # [R, T] int64, from 0 in each conversation: several may share one of R rows
    meaning: Tensor | None = None  # [B] int64; equal numbers, in whatever batch: captions that mean the same
    start: int = 0  # place of the first sample in the whole batch, of which this may be a piece
    ids: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()  # the raw captions, for towers with a tokenizer of their own
    negative_captions: tuple[str, ...] = ()

    def to(self, device: Any) -> Batch:
        moved = {f.name: v.to(device, non_blocking=True) for f in fields(self) if hasattr(v := getattr(self, f.name), "to")}
        return replace(self, **moved)

    def pin_memory(self) -> Batch:
        """In page-locked memory, from where a GPU fetches while the program goes on."""
        pinned = {f.name: v.pin_memory() for f in fields(self) if hasattr(v := getattr(self, f.name), "pin_memory")}
        return replace(self, **pinned)

    @property
    def size(self) -> int:
        """Samples. Of conversations neither rows (several in one) nor images (any number in each)."""
        if self.learned is not None:
            return len(self.ids)
        first = self.pixels if self.pixels is not None else self.text
        assert first is not None
        return first.shape[0]


def floats(pixels: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] → float32 in [-1, 1]; floats as they are. Done on the device, late: bytes are cheap to hold and to send."""
    import torch

    return pixels if pixels.is_floating_point() else pixels.to(torch.float32).mul_(1 / 127.5).sub_(1.0)
