"""Token merging in a vision tower, which learns nothing itself (ToMe, Bolya et al. 2023, arXiv:2210.09461)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from diptych.core.errors import DiptychError
from diptych.models.adapters.base import Adapter
from diptych.models.layers.attention import Transformer
from diptych.models.layers.merging import Merging, least, rates_of, rates_to
from diptych.models.vision.towers import ViT

if TYPE_CHECKING:
    from diptych.models.build import Build
    from diptych.models.part import Part


class ToMe(Adapter):
    """The blocks of the tower merge similar tokens, in training as well as afterwards, so that later blocks and the parts that read
    the tower have fewer of them.

    merge: how many tokens go in each block (r; the paper's 8 to 16 of 197, constant). decreasing: instead twice as many in the
    first block, and fewer in each down to none in the last (§4.1). tokens: instead of ``merge``, how many are left at the end,
    without class tokens, with equal shares for the blocks. proportional: a token that stands for s patches counts s times in
    attention (the paper: for towers that were trained without merging; those trained with it need not).
    """

    learns = False

    def __init__(
        self,
        part: Part,
        build: Build,
        where: str,
        *,
        merge: Annotated[int, Field(ge=1)] | None = None,
        tokens: Annotated[int, Field(ge=1)] | None = None,
        decreasing: bool = False,
        proportional: bool = True,
    ):
        super().__init__(part, build, where)
        if (merge is None) == (tokens is None):
            raise DiptychError(f"{where}: set either merge, how many tokens go in each block, or tokens, how many are left")
        if decreasing and merge is None:
            raise DiptychError(f"{where}: decreasing is a schedule of merge; tokens has equal shares")
        install(part, where, merge, tokens, decreasing, proportional)


def install(
    part: Any, where: str, merge: int | None, tokens: int | None, decreasing: bool = False, proportional: bool = True
) -> Merging:
    """Let a tower merge tokens from now on: its ``tokens`` are those that are left. Arguments as for ``ToMe``.

    DiptychError if it is not a plain ViT of ours, or cannot be left with so few tokens.
    """
    if not isinstance(part, ViT) or type(part).forward is not ViT.forward or type(part).through is not ViT.through:
        raise DiptychError(
            f"{where}: tokens are merged in a ViT of kind vit, clip, class, siglip or capped; this part is {type(part).__name__}"
        )
    if type(part.transformer) is not Transformer or part.transformer.merging is not None:
        raise DiptychError(f"{where}: the tower merges tokens already, or its blocks are of another kind")
    if part.prompts:
        raise DiptychError(f"{where}: the tower has learned vectors among its tokens (an adapter), which cannot be merged")
    patches, depth = part.tokens, len(part.transformer.blocks)
    if tokens is None:
        assert merge is not None
        rates: list[int] | None = rates_of(patches, depth, merge, decreasing)
    else:
        rates = rates_to(patches, depth, tokens) if tokens <= patches else None
    if rates is None:
        fewest = least(patches, depth)
        raise DiptychError(f"{where}: tokens: {tokens} of {patches} patches; {depth} blocks can leave {fewest} to {patches}")
    part.transformer.merging = Merging(rates, part.extra, proportional)
    part.takes_prompts = False
    if part.pooling != "cascade":
        part.tokens, part.scattered = patches - sum(rates), True
    return part.transformer.merging
