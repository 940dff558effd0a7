"""Learned vectors among a tower's tokens: CoOp's context words, VPT's prompts.

Shapes: n vectors, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.core.errors import DiptychError
from diptych.models.adapters.base import Adapter

if TYPE_CHECKING:
    from diptych.models.build import Build
    from diptych.models.part import Part


class Prompt(Adapter):
    """``tokens`` learned vectors [n, D]: in a text tower between [BOS] and the words, with their own positions (CoOp, Zhou et al.
    2022, §3.2: a context that all classes share); in a vision tower behind the class tokens, before the first block (VPT-shallow,
    Jia et al. 2022, §3.2). They are removed after the last block, so the output has the same shape as without them.

    words: the vectors begin as those of these words, in a text tower; their number is then that of the words' tokens. std:
    otherwise, of the random initial values.
    """

    def __init__(
        self,
        part: Part,
        build: Build,
        where: str,
        *,
        tokens: Annotated[int, Field(ge=1)] = 16,
        words: str | None = None,
        std: Annotated[float, Field(gt=0)] = 0.02,
    ):
        super().__init__(part, build, where)
        if not part.takes_prompts:
            name = next(name for name, other in build.parts.items() if other is part)
            raise DiptychError(
                f"{where}: parts.{name} ({type(part).__name__}) has no place for prompt tokens; transformer towers have "
                "(vision: vit, clip, siglip; text: transformer, clip, bert)"
            )
        start = torch.randn(tokens, part.width) * std
        embedding = getattr(part, "embedding", None)
        if words is not None:
            if embedding is None:
                raise DiptychError(f"{where}.words: a vision tower has no words; set tokens")
            ids, mask = build.tokenizer.encode_batch([words])
            inner = torch.from_numpy(ids[0])[1 : int(mask.sum()) - 1]
            start = embedding(inner).detach().clone()
        self.vectors = nn.Parameter(start)
        part.prompts = [*part.prompts, self]
        if embedding is not None:
            room = build.tokenizer.max_length - len(start)
            if room < 4:
                raise DiptychError(f"{where}: {len(start)} prompt tokens leave no room for words; raise data.tokenizer.max_length")
            build.tokenizer.max_length = room

    def forward(self, rows: int, dtype: torch.dtype) -> Tensor:
        """The vectors for a batch: [rows, n, D]."""
        return self.vectors.to(dtype).expand(rows, -1, -1)

    def merge(self) -> None:
        """DiptychError: learned vectors cannot be merged into the tower's weights."""
        raise DiptychError(
            f"{self.where}: prompts cannot be merged into a part, since no class of another library supports them; use the run "
            "itself (`diptych evaluate RUN`), or adapt by kind: lora, which can be merged"
        )
