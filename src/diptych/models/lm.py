"""Language models: pretrained decoders that read image tokens before the words.

A sequence is [BOS], the image tokens, the caption, [EOS]. An ``lm`` part has ``width``, ``caption_logits``, ``remember``, ``continue_logits`` and ``generate``.
Shapes: B batch, N image tokens, T text tokens with [BOS] and [EOS], D width, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from diptych.models.build import Build

if TYPE_CHECKING:
    from diptych.models.pretrained import CausalLM, Prefix


class Remembered(NamedTuple):
    """What a language model keeps of [BOS] and an image, so that many captions can be tried on it."""

    last: Tensor  # [B, 1, D] hidden state of the last image token: it predicts the first word
    past: Prefix

    def rows(self, index: Tensor) -> Remembered:
        return Remembered(self.last[index], self.past[index])


class PretrainedLM(nn.Module):
    """A causal language model of transformers. trim: keep only the vocabulary that the training captions need."""

    scale: Tensor
    packaged = ("",)  # all weights come from the package; a checkpoint holds none of them while the part is frozen

    def __init__(self, build: Build, lm: CausalLM, trim: bool):
        super().__init__()
        if trim:
            lm.trim(build.corpus, kept=build.kept)
        self.lm = lm
        self.width = lm.width
        lm.tokenizer.max_length = build.max_length
        build.tokenizer = lm.tokenizer
        # Image tokens start at the size of word vectors: far larger or smaller ones would drown or be drowned.
        words = lm.embed(torch.arange(lm.vocabulary)[None]).float()
        self.register_buffer("scale", words.pow(2).mean().sqrt(), persistent=False)

    def _opening(self, prefix: Tensor) -> Tensor:
        """[BOS] and the image, [B, 1 + N, D]."""
        bos = self.lm.embed(torch.full((len(prefix), 1), self.lm.tokenizer.bos, device=prefix.device))
        return torch.cat([bos, (prefix * self.scale).to(bos.dtype)], 1)

    def caption_logits(self, prefix: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """prefix [B, N, D], ids and mask [B, T] → [B, T − 1, V]; row t speaks of text token t + 1."""
        opening = self._opening(prefix)
        embeds = torch.cat([opening, self.lm.embed(ids[:, 1:-1])], 1)
        seen = torch.cat([torch.ones(opening.shape[:2], dtype=torch.bool, device=mask.device), mask[:, 1:-1]], 1)
        return self.lm.head(self.lm.hidden(embeds, seen)[:, prefix.shape[1] :])

    def remember(self, prefix: Tensor) -> Remembered:
        opening = self._opening(prefix)
        hidden, past = self.lm.step(opening, torch.ones(opening.shape[:2], dtype=torch.bool, device=prefix.device))
        return Remembered(hidden[:, -1:], past)

    def continue_logits(self, images: Remembered, ids: Tensor, mask: Tensor) -> Tensor:
        """As ``caption_logits``, for images that were read before."""
        hidden = images.last
        if ids.shape[1] > 2:
            words = self.lm.hidden(self.lm.embed(ids[:, 1:-1]), mask[:, 1:-1], past=images.past)
            hidden = torch.cat([hidden, words], 1)
        return self.lm.head(hidden)

    def generate(self, prefix: Tensor, max_tokens: int) -> Tensor:
        """Greedy token ids [B, ≤ max_tokens], padded behind [EOS]."""
        tokenizer = self.lm.tokenizer
        hidden, past = self.remember(prefix)
        done = torch.zeros(len(prefix), dtype=torch.bool, device=prefix.device)
        out: list[Tensor] = []
        for _ in range(max_tokens):
            following = self.lm.head(hidden[:, -1]).argmax(-1).masked_fill(done, tokenizer.pad)
            out.append(following)
            done = done | (following == tokenizer.eos)
            if bool(done.all()):
                break
            hidden, past = self.lm.step(self.lm.embed(following[:, None]), ~done[:, None], past)
        return torch.stack(out, 1)


class Gemma(PretrainedLM):
    """Gemma 3 270M (Gemma Team 2025), under the Gemma Terms of Use."""

    weights = "gemma-3-270m"

    def __init__(self, build: Build, *, trim: bool = True):
        from diptych.models.pretrained import load_gemma

        super().__init__(build, load_gemma(), trim)
        build.licences.append("gemma-3-270m")


COMMON = (
    "there is a picture of an the with and no to in on at left right top bottom above below behind front big small one two three four five six "
    "red orange yellow green blue purple pink brown black white man woman people sitting standing large table street sign"
)


class RandomLM(PretrainedLM):
    """A tiny language model with random weights, for tests and for trying a recipe without the packages."""

    def __init__(self, build: Build, *, width: int = 32, depth: int = 2):
        from diptych.models.pretrained import CausalLM

        # Of fixed words, not of the corpus: a checkpoint holds neither tokenizer nor, while frozen, weights.
        super().__init__(build, CausalLM.random(width=width, depth=depth, texts=[COMMON] * 2), trim=False)


LM = {"gemma": Gemma, "random": RandomLM}
