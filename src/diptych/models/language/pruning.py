"""Fewer image tokens in the later layers of a language model, at inference (FastV, Chen et al. 2024, arXiv:2403.06764; the second
stage of VScan, Zhang et al. 2025, arXiv:2505.22654, §3.3).

Shapes: B rows, L new positions, P positions read before, l and p those of them that are left, H heads, D width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from diptych.core.errors import DiptychError
from diptych.models.fusion.gated import decoder_layers
from diptych.models.pretrained import CausalLM

ATTENTION = ("self_attn", "attn", "attention", "self_attention")  # names of a layer's attention in transformers


def left_of(images: Tensor, scores: Tensor, real: Tensor, keep: float) -> tuple[Tensor, Tensor] | None:
    """The positions that later layers read: int64 [B, l], in order, and which of them are only there because another row has more,
    bool [B, l]. None: all of them.

    images, real [B, L] bool: image tokens, and no padding; scores [B, L]: the attention that each position receives. Of the N image
    tokens of a row ⌈keep · N⌉ with the highest scores are left; the last position always is, since it predicts what follows.
    """
    last = images.clone()
    last[:, :-1] = False
    ranked = scores.float().masked_fill(~images, -torch.inf).masked_fill(last, torch.inf)
    rank = ranked.argsort(dim=1, descending=True, stable=True).argsort(1)
    count = images.sum(1, keepdim=True)
    stays = real & (~images | (rank < (count * keep - 1e-9).ceil().clamp_min(1)))
    most = int(stays.sum(1).max())
    if most == images.shape[1]:
        return None
    chosen = (~stays).long().argsort(dim=1, stable=True)[:, :most].sort(1).values
    return chosen, ~stays.gather(1, chosen)


class Pruning:
    """What is left of the images after a layer. Set as ``CausalLM.pruning``; it works by hooks on the layers of transformers.

    keep: the share of the image tokens; after: the number of layers that read all of them, from 1. The attention that ranks them is
    that of the last position of the prompt in the last of these layers, averaged over the heads. Later layers neither compute nor
    remember the others; the positions of those that are left do not change.
    """

    def __init__(self, lm: CausalLM, keep: float, after: int):
        self.keep, self.after = keep, after
        layers = decoder_layers(lm)
        if not 1 <= after < len(layers):
            raise DiptychError(f"after: {after}, but the language model has {len(layers)} layers; expected 1 to {len(layers) - 1}")
        attention = next((m for name in ATTENTION if (m := getattr(layers[after - 1], name, None)) is not None), None)
        if attention is None:
            raise DiptychError(f"{type(layers[0]).__name__}: the layers of this language model have no attention that can be read")
        lm.model.set_attn_implementation("eager")  # the others do not give the weights
        attention.register_forward_hook(_Ranks(self))
        for i, layer in enumerate(layers[after:]):
            layer.register_forward_pre_hook(_Thins(self, first=i == 0), with_kwargs=True)
        self.images: Tensor | None = None
        self.before: Tensor | None = None
        self.now: tuple[Tensor, Tensor] | None = None
        self.past = 0

    def begin(self, images: Tensor | None, real: Tensor, before: Tensor | None, past: int) -> None:
        """Called before the layers read L positions. images, real: as of ``left_of``; before [B, p]: which of the ``past``
        positions later layers have (−1: none); None: all of them.
        """
        self.images, self.real, self.before, self.past, self.now = images, real, before, past, None

    def finish(self) -> Tensor | None:
        """Called after them: the positions that later layers have now, [B, p + l]; None: all."""
        result = self.deep
        self.images = self.before = self.now = None
        return result

    @property
    def deep(self) -> Tensor | None:
        """The positions whose keys later layers have, −1 for those that may not be seen; None: all."""
        if self.before is None and self.now is None:
            return None
        B, L, device = len(self.real), self.real.shape[1], self.real.device
        before = torch.arange(self.past, device=device).expand(B, -1) if self.before is None else self.before.expand(B, -1)
        if self.now is None:
            new = torch.arange(L, device=device).expand(B, -1) + self.past
        else:
            new = (self.now[0] + self.past).masked_fill(self.now[1], -1)
        return torch.cat([before, new], 1)


class _Ranks:
    """A hook behind the attention of the last layer that reads all tokens."""

    def __init__(self, own: Pruning):
        self.own = own

    def __call__(self, _: nn.Module, args: Any, output: tuple[Any, ...]) -> None:
        own, weights = self.own, output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if own.images is None:
            return
        if weights is None:
            raise DiptychError(
                "the language model does not give the weights of its attention, so its image tokens cannot be ranked"
            )
        own.now = left_of(own.images, weights[:, :, -1, own.past :].mean(1), own.real, own.keep)


class _Thins:
    """A hook before each later layer: what it is given, without the positions that are gone."""

    def __init__(self, own: Pruning, first: bool):
        self.own, self.first = own, first

    def __call__(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        deep, now = self.own.deep, self.own.now
        if deep is None:
            return None
        kwargs = dict(kwargs)
        mask = kwargs.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.dim() != 4:
            raise DiptychError("this language model gives its layers no mask of positions, so none can be taken out")
        B, lowest = len(deep), torch.finfo(mask.dtype).min
        mask = mask.expand(B, -1, -1, -1)
        if now is not None:
            mask = mask.gather(2, now[0][:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
        seen = deep.clamp_min(0)[:, None, None].expand(-1, mask.shape[1], mask.shape[2], -1)
        kwargs["attention_mask"] = mask.gather(3, seen).masked_fill((deep < 0)[:, None, None], lowest)
        if now is None:
            return args, kwargs
        if kwargs.get("position_embeddings") is not None:
            kwargs["position_embeddings"] = tuple(_rows(v, now[0]) for v in kwargs["position_embeddings"])
        if isinstance(kwargs.get("position_ids"), Tensor):
            kwargs["position_ids"] = kwargs["position_ids"].expand(B, -1).gather(1, now[0])
        if self.first:
            x = _rows(args[0] if args else kwargs["hidden_states"], now[0])
            if not args:
                return args, {**kwargs, "hidden_states": x}
            args = (x, *args[1:])
        return args, kwargs


def _rows(v: Tensor, index: Tensor) -> Tensor:
    """Rows of v [B or 1, L, D] at an index [B, l]: [B, l, D]."""
    return v.expand(len(index), -1, -1).gather(1, index[..., None].expand(-1, -1, v.shape[-1]))


def half(lm: CausalLM) -> int:
    """The middle layer (VScan's: 16 of 32)."""
    return max(1, math.floor(len(decoder_layers(lm)) / 2))
