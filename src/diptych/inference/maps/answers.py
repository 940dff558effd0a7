"""From a word that a language model writes to the patches that it looks at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.core.batch import Batch, Images
from diptych.core.capabilities import Image
from diptych.core.encodings import TEXT, Pass
from diptych.core.errors import DiptychError
from diptych.inference.maps import formulas
from diptych.inference.maps.base import arrays, gradients_of
from diptych.inference.maps.watching import watching


class Word(NamedTuple):
    """A token of an answer with the map of what its probability depends on, float32 [h, w]."""

    text: str
    logprob: float
    grid: np.ndarray


def sees_patches(run: Any) -> bool:
    """Whether a language model reads the patches of the picture, one by one or merged into a coarser square, among its words."""
    parts = run.model.parts
    lm, connector = (parts[name] if name in parts else None for name in ("lm", "connector"))
    if lm is None or connector is None or getattr(lm, "gated", False):
        return False
    return bool(getattr(connector, "placed", False)) and math.isqrt(int(connector.tokens)) ** 2 == int(connector.tokens)


def _recorded(run: Any, p: Pass) -> tuple[list[Tensor], Tensor, int, int]:
    """Attention matrices of the language model's layers [B, H, L, L], the log-probability of each word [B, T − 1], the first
    position of the picture and how many there are.
    """
    lm = run.model.parts["lm"]
    prefix = p["image.prefix"]
    n = prefix.shape[1]
    with watching(lm.lm.model) as seen:
        logits = lm.caption_logits(prefix, p[TEXT].ids, p[TEXT].mask)
    if not seen.own:
        raise DiptychError(f"model '{run.name}': its language model returns no attention")
    logprobs = F.log_softmax(logits.float(), -1).gather(2, p[TEXT].ids[:, 1:, None])[..., 0] * p[TEXT].mask[:, 1:]
    words = logits.shape[1]
    first = seen.own[0].shape[-1] - (words - 1) - n
    return seen.own, logprobs, first, n


def answer_map(run: Any, p: Pass) -> Tensor:
    """[B, N of the connector]: attention times the positive part of the gradient of the text's log-probability, the mean over
    heads, layers and words.
    """
    matrices, logprobs, first, n = _recorded(run, p)
    gradients = gradients_of(logprobs.sum(1), matrices)
    total = []
    for a, g in zip(matrices, gradients, strict=True):
        rows = slice(first + n - 1, first + n - 1 + logprobs.shape[1])
        picture = slice(first, first + n)
        total.append(formulas.cross_attention(a.detach()[:, :, rows, picture], g[:, :, rows, picture], p[TEXT].mask[:, 1:]))
    return torch.stack(total).mean(0)


def words_of_answer(run: Any, image: Image, text: str) -> list[Word]:
    """The map of every token of a text about a picture, such as the model's own caption: attention from the position that predicts
    it to the picture's tokens, times the positive part of the gradient of its log-probability, mean over heads and layers.
    """
    from diptych.data.fields.base import stacked
    from diptych.data.fields.text import tokenized
    from diptych.data.image import as_pixels, resize

    model, device = run.model, run.device
    with torch.enable_grad():
        pixels = stacked([resize(as_pixels(image, "image"), model.image_size)]).to(device)
        shown = Images(Images(pixels).floats.clone().requires_grad_())
        p = model.encode(Batch({"image": shown, "text": tokenized(model.tokenizer, [text]).to(device)}, 1))
        matrices, logprobs, first, n = _recorded(run, p)
        ids = p[TEXT].ids[0, 1:].tolist()
        real = int(p[TEXT].mask[0, 1:].sum())
        found = []
        for t in range(real):
            gradients = gradients_of(logprobs[:, t], matrices)
            row = first + n - 1 + t
            maps = [formulas.weighted(a.detach(), g)[:, row, first : first + n] for a, g in zip(matrices, gradients, strict=True)]
            (grid,) = arrays(torch.stack(maps).mean(0))
            found.append(Word(str(model.tokenizer.decode([ids[t]])), float(logprobs[0, t]), grid))
    return found


def in_words(words: Sequence[Word]) -> list[Word]:
    """Tokens joined to words: a token that begins with a space or punctuation begins a word; maps are added."""
    joined: list[Word] = []
    for word in words:
        if joined and word.text and word.text[0].isalnum() and not word.text.startswith((" ", "▁")):
            last = joined[-1]
            joined[-1] = Word(last.text + word.text, last.logprob + word.logprob, last.grid + word.grid)
        elif word.text.strip():
            joined.append(word)
    return joined
