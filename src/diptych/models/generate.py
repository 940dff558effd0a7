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
    if model.reads_codes:
        return model.part("decoder").generate(images.codes, min(max_tokens, tokenizer.max_length - 1))
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


def sample(
    logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """One choice a row: logits [B, V] → [B]. temperature 0: the likeliest; top_k, top_p: among the k likeliest, or those that together have p."""
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.float() / temperature, -1)
    ordered, which = probabilities.sort(-1, descending=True)
    rank = torch.arange(logits.shape[-1], device=logits.device)
    kept = (ordered.cumsum(-1) - ordered < top_p) & (rank < (top_k or logits.shape[-1]))
    chosen = torch.multinomial(ordered * kept, 1, generator=generator)
    return which.gather(-1, chosen)[:, 0]
