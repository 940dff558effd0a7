"""all-MiniLM-L6-v2 (Wang et al. 2020; Reimers & Gurevych 2019): a sentence encoder, frozen.

Shapes: B batch, T word pieces, 384 wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diptych.core.batch import Tokens
from diptych.models.pretrained.packages import quiet, require

WIDTH = 384
MAX_LENGTH = 256  # of its training
CACHE_SIZE = 100_000  # sentence vectors: 150 MB


class MiniLM(nn.Module):
    """``encode`` gives word and sentence vectors, ``embed`` sentence vectors only, cached by text, since they never change.

    Sentence vectors are means over the real word pieces; scaled to unit length they are those of sentence-transformers.
    """

    width = WIDTH

    def __init__(self, model: nn.Module, tokenizer: Any, cache_size: int = CACHE_SIZE):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.cache_size = cache_size
        self.cache: dict[tuple[str, bool], Tensor] = {}  # (text, under autocast): the vector, on the CPU

    def train(self, mode: bool = True) -> MiniLM:
        """Stays in evaluation mode: the dropout of a frozen encoder is noise, and would end up in the cache."""
        return super().train(False)

    @torch.no_grad()
    def encode(self, texts: Sequence[str], device: torch.device | str = "cpu") -> Tokens:
        """tokens [B, T, 384], pooled [B, 384], mask [B, T]; float32 also under autocast."""
        batch = self.tokenizer(list(texts), padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt").to(device)
        tokens = self.model(**batch).last_hidden_state.float()  # [B, T, 384]
        mask = batch["attention_mask"].bool()
        weight = mask[..., None].float()
        return Tokens(tokens, (tokens * weight).sum(1) / weight.sum(1), mask)

    def embed(self, texts: Sequence[str], device: torch.device | str = "cpu") -> Tensor:
        """Sentence vectors [B, 384]; each text is computed only once."""
        autocast = torch.is_autocast_enabled(torch.device(device).type)
        missing = sorted({text for text in texts if (text, autocast) not in self.cache}, key=len)
        fresh: dict[str, Tensor] = {}
        for start in range(0, len(missing), 64):  # texts of similar length: little padding
            chunk = missing[start : start + 64]
            fresh.update(zip(chunk, self.encode(chunk, device).pooled.cpu(), strict=True))
        rows = [fresh[text] if text in fresh else self.cache[text, autocast] for text in texts]
        for text, row in fresh.items():
            while len(self.cache) >= self.cache_size:
                del self.cache[next(iter(self.cache))]  # the oldest
            self.cache[text, autocast] = row
        return torch.stack(rows).to(device) if rows else torch.empty(0, WIDTH, device=device)


def load_minilm(path: str | Path | None = None) -> MiniLM:
    """The packaged encoder, or one of the same shape from a local directory."""
    if path is None:
        (package,) = require("minilm")
        path = Path(package.__path__[0]) / "model"
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    with quiet():
        model = AutoModel.from_pretrained(path, local_files_only=True)
    return MiniLM(model, tokenizer)
