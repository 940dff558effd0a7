"""Learned vectors before what a language model reads: one set for images, one for texts.

Shapes: n vectors, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import nn

from diptych.core.errors import DiptychError
from diptych.models.adapters.base import Adapter

if TYPE_CHECKING:
    from diptych.models.build import Build
    from diptych.models.part import Part


class SoftPrompt(Adapter):
    """``tokens`` learned vectors a side behind a language model's words before an image, and before a text (VladVA, Ouali et al.
    2025, arXiv:2412.04378, §3.3, has such prompts for each modality). They are read with single images and texts; conversations,
    documents and texts alone (``image: false``) are read without them.

    The vectors begin at random, as long as word vectors are.
    """

    def __init__(self, part: Part, build: Build, where: str, *, tokens: Annotated[int, Field(ge=1)] = 8):
        super().__init__(part, build, where)
        lm: Any = part
        if not hasattr(lm, "soft"):
            raise DiptychError(f"{where}: {type(part).__name__} is no language model; towers have kind: prompt")
        if lm.soft:
            raise DiptychError(f"{where}: parts.lm has learned vectors already; remove one of the adapters")
        self.image, self.text = (nn.Parameter(torch.randn(tokens, part.width)) for _ in range(2))
        lm.soft = {"image": self.image, "text": self.text}
        self.restart()

    @torch.no_grad()
    def restart(self) -> None:
        """Gives the vectors the mean length of the words as they are now."""
        lm: Any = self.part
        device = next(lm.parameters()).device
        words = lm.lm.embed(torch.arange(lm.lm.vocabulary, device=device)[None]).float()
        size = words.norm(dim=-1).mean().to(self.image.device)
        for vectors in (self.image, self.text):
            vectors.mul_(size / vectors.norm(dim=1, keepdim=True))

    def merge(self) -> None:
        """DiptychError: learned vectors cannot be merged into weights."""
        raise DiptychError(
            f"{self.where}: learned vectors cannot be merged into a language model; use the run itself (`diptych evaluate RUN`), "
            "or adapt by kind: lora, which can be merged"
        )
