"""Language models on text alone: how likely a text is, and what follows a prompt, without any image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from diptych.core.streaming import cut
from diptych.inference.generate import Decoding, write
from diptych.models.vlm import VLM
from diptych.objectives.generative import token_log_probabilities

ROWS = 64  # texts read at a time


class TextAlone:
    """What the part ``lm`` of a model does without an image. Prompt and text are tokenised separately, so that a prompt has the
    same tokens whatever follows it, and are read as captions are in training. inference: the context in which the model computes.
    """

    def __init__(self, model: VLM, inference: Callable[[], AbstractContextManager[None]]):
        self.model, self.inference = model, inference

    def complete(self, prompts: Sequence[str], how: Decoding) -> list[str]:
        """What follows each prompt, up to [EOS]."""
        tokenizer, lm = self.model.tokenizer, self.model.part("lm")
        out: list[str] = []
        for start in range(0, len(prompts), ROWS):
            rows = [[tokenizer.bos, *ids] for ids in tokenizer.caption_pieces(list(prompts[start : start + ROWS]))]
            ids, mask = self._padded(rows, left=True)
            with self.inference():
                read = lm.read(ids, mask, None)
                written = write(self.model, None, how, None, (lm.lm.head(read.last[:, -1]), read.cache))
            out += [cut(tokenizer.decode(row), how.stop) for row in written.tolist()]
        return out

    def loglikelihood(self, prompts: Sequence[str], texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """log P(text, [EOS] | prompt) in nats, float32 [N], and the number of tokens it is a sum of, int64 [N]."""
        tokenizer, lm = self.model.tokenizer, self.model.part("lm")
        before = [[tokenizer.bos, *ids] for ids in tokenizer.caption_pieces(list(prompts))]
        behind = tokenizer.caption_pieces([f" {text}" if prompt else text for prompt, text in zip(prompts, texts, strict=True)])
        lengths = np.array([len(ids) + 1 for ids in behind], dtype=np.int64)
        out = np.empty(len(texts), dtype=np.float32)
        for start in range(0, len(texts), ROWS):
            rows = range(start, min(start + ROWS, len(texts)))
            ids, mask = self._padded([[*before[i], *behind[i], tokenizer.eos] for i in rows])
            with self.inference():
                logp = token_log_probabilities(lm.text_logits(ids, mask), ids[:, 1:]).detach()
            for k, i in enumerate(rows):
                first = len(before[i]) - 1
                out[i] = float(logp[k, first : first + lengths[i]].sum())
        return out, lengths

    def _padded(self, rows: Sequence[list[int]], left: bool = False) -> tuple[Any, Any]:
        device = next(self.model.parameters()).device
        longest = max(map(len, rows))
        ids = torch.full((len(rows), longest), int(self.model.tokenizer.pad))
        mask = torch.zeros(len(rows), longest, dtype=torch.bool)
        for k, row in enumerate(rows):
            at = slice(longest - len(row), longest) if left else slice(0, len(row))
            ids[k, at], mask[k, at] = torch.tensor(row), True
        return ids.to(device), mask.to(device)
