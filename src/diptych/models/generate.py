"""Greedy generation of captions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diptych.models.passes import ImageSide
    from diptych.models.vlm import VLM


@torch.no_grad()
def greedy(model: VLM, images: ImageSide, max_tokens: int) -> Tensor:
    """Token ids [B, ≤ max_tokens] after [BOS], each sequence padded behind its [EOS]."""
    tokenizer = model.tokenizer
    if "lm" in model.parts:
        return model.part("lm").generate(images.prefix, max_tokens)
    B, device = len(images.encoding.pooled), images.encoding.pooled.device
    ids = torch.full((B, 1), tokenizer.bos, device=device)
    done = torch.zeros(B, dtype=torch.bool, device=device)
    text, decoder = model.part("text"), model.part("decoder")
    for _ in range(min(max_tokens, tokenizer.max_length - 1)):
        seen = text(ids, torch.ones_like(ids, dtype=torch.bool))
        following = decoder(seen, images.encoding)[:, -1].argmax(-1)
        following = following.masked_fill(done, tokenizer.pad)
        ids = torch.cat([ids, following[:, None]], 1)
        done |= following == tokenizer.eos
        if bool(done.all()):
            break
    return ids[:, 1:]
