"""Longer texts from the positions of shorter ones (Long-CLIP, Zhang et al. 2024, arXiv:2403.15378, §3.1; FG-CLIP)."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.models.build import Build
from diptych.models.text.towers import TextTransformer


def stretched(positions: Tensor, keep: int, factor: int = 4) -> Tensor:
    """Positions [keep + factor · (L − keep), D] from [L, D]: the first ``keep`` stay, each step between later ones becomes
    ``factor`` equal ones; after the last, the last step goes on.
    """
    later = positions[keep:]
    step = torch.cat([later[1:] - later[:-1], later[-1:] - later[-2:-1]])
    share = torch.arange(factor, device=positions.device) / factor
    return torch.cat([positions[:keep], (later[:, None] + share[:, None] * step[:, None]).flatten(0, 1)])


class Stretched(TextTransformer):
    """A text transformer whose positions begin as those of one for shorter texts, stretched (``stretched``).

    Its texts have ``data.tokenizer.max_length`` tokens, which must be ``keep`` and a multiple of ``factor``: 248 = 20 + 4 · 57 in
    Long-CLIP and FG-CLIP, from CLIP's 77. Pooled at [EOS].
    """

    def __init__(
        self,
        build: Build,
        *,
        keep: Annotated[int, Field(ge=1)] = 20,
        factor: Annotated[int, Field(ge=1)] = 4,
        causal: bool = False,
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        hidden: int | None = None,
    ):
        sizes: dict[str, Any] = {"width": width, "depth": depth, "heads": heads, "hidden": hidden}
        super().__init__(build, causal=causal, **sizes)
        longest = build.tokenizer.max_length
        build.require(
            longest >= keep + 2 * factor and (longest - keep) % factor == 0,
            f"data.tokenizer.max_length is {longest}; it must be keep ({keep}) and a multiple of factor ({factor}), at least two",
        )
        short = keep + (longest - keep) // factor
        self.positions = nn.Parameter(stretched(self.positions.detach()[:short], keep, factor))
