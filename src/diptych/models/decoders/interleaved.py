"""One causal decoder over words and image codes (Chameleon Team 2024, arXiv:2405.09818; CM3leon, Yu et al. 2023, arXiv:2309.02591).

Its vocabulary is the text's, then <image> and </image>, which enclose the codes of every image, then the quantizer's codes:

    a caption of an image   [BOS] <image> codes </image> words [EOS]
    an image of a caption   [BOS] words <image> codes </image> [EOS]
    a document              [BOS] words <image> codes </image> <image> codes </image> words … [EOS]

The position determines whether a word or a code follows. So probabilities (except in the loss, which is the paper's) are normalised
over words only, or codes only, and sum to 1 over all captions, or all images.

Shapes: B batch, N image codes, T text tokens with [BOS] and [EOS], L tokens of a sequence, D width, V words, K codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.core.batch import Texts
from diptych.core.graph import provides
from diptych.models.build import Build
from diptych.models.layers.cache import EMPTY, Indexed, KVCache, Prefix
from diptych.models.layers.rotary import RotaryTransformer
from diptych.models.part import Part

NOTHING, WORD, CODE = range(3)  # the kinds of tokens; the two marks around an image count as words


@dataclass(frozen=True)
class Drawn(Indexed):
    """The cache of images that are being drawn: after their captions and, for guidance, without them."""

    seen: KVCache
    bare: KVCache
    guidance: float


class InterleavedDecoder(Part):
    """Rotary positions, RMS norms, gated MLPs, normed queries and keys, no biases, a separate output layer: as in Chameleon.

    depth: None: twice that of a tower, since it replaces two. norm: ``before`` attention and MLP (the 7B model), or ``after`` each,
    inside the residual branch (the 34B model, after Swin v2). qk_norm: whether queries and keys are normalised (both models do).
    """

    begins_with = "image.codes"
    limited = True
    read_directly = ("head",)
    called = (
        "hidden",
        "caption_logits",
        "remember",
        "continue_logits",
        "image_logits",
        "logits_at",
        "start",
        "step",
        "start_text",
        "step_text",
    )

    def __init__(
        self,
        build: Build,
        *,
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        hidden: int | None = None,
        theta: float = 10_000.0,
        eps: float = 1e-5,
        norm: Literal["before", "after"] = "before",
        qk_norm: bool = True,
    ):
        super().__init__()
        size = build.size
        build.require("quantizer" in build.parts, "needs a part 'quantizer', which the recipe does not have")
        quantizer = build.parts["quantizer"]
        self.width, self.tokens, self.codes = width or size.width, int(quantizer.tokens), int(quantizer.vocabulary)  # type: ignore[arg-type]
        self.words = len(build.tokenizer)
        self.bos, self.eos, self.pad = build.tokenizer.bos, build.tokenizer.eos, build.tokenizer.pad
        self.begin, self.end, self.first_code = self.words, self.words + 1, self.words + 2
        self.embedding = nn.Embedding(self.words + 2 + self.codes, self.width)
        depth, heads = depth or 2 * size.depth, heads or size.heads
        self.transformer = RotaryTransformer(self.width, depth, heads, hidden, theta, eps, norm, qk_norm)
        self.head = nn.Linear(self.width, self.words + 2 + self.codes, bias=False)

    # --- sequences ---

    def arrange(self, codes: Tensor, ids: Tensor, mask: Tensor, image_first: Tensor, bare: Tensor) -> tuple[Tensor, Tensor]:
        """Sequences [B, N + T + 2], padded at the end, and the kind of each token (NOTHING, WORD, CODE).

        codes [B, N]; ids, mask [B, T]; image_first [B] bool: caption after image; bare [B] bool: the image has no caption.
        """
        T = ids.shape[1]
        N = codes.shape[1]
        length = mask.sum(1).masked_fill(bare, 2)[:, None]  # [B, 1] of the text with [BOS] and [EOS]
        place = torch.arange(N + T + 2, device=ids.device)[None]  # [1, L]
        start = torch.where(image_first[:, None], 2, length)  # [B, 1] where codes begin
        which = place - start
        is_code = (which >= 0) & (which < N)
        # Words keep their positions before the image, and are N + 2 positions later after it.
        word = torch.where(place < start - 1, place, place - N - 2)
        is_word = (place < start - 1) | ((place > start + N) & (word < length))
        out = torch.where(is_word, ids.gather(1, word.clamp(0, T - 1)), self.pad)
        out = torch.where(is_word & (word == length - 1), self.eos, out)  # the end of a bare image comes before that of its caption
        out = torch.where(is_code, codes.gather(1, which.clamp(0, N - 1)) + self.first_code, out)
        out = torch.where(which == -1, self.begin, torch.where(which == N, self.end, out))
        kind = torch.where(is_code, CODE, torch.where(is_word | (which == -1) | (which == N), WORD, NOTHING))
        return out, kind

    def sequence(self, parts: Sequence[tuple[int, Tensor]], ends: bool = True) -> tuple[Tensor, Tensor]:
        """One sequence of a document's parts in order, and the kind of each token, [L] each.

        parts: (WORD, ids of words without [BOS] and [EOS]) or (CODE, the codes of an image [N]). ends: with [EOS] at the end.
        """
        device = parts[0][1].device if parts else None

        def mark(token: int) -> tuple[Tensor, Tensor]:
            """One token that counts as a word."""
            return torch.tensor([token], device=device), torch.tensor([WORD], device=device)

        found = [mark(self.bos)]
        for kind, ids in parts:
            inner = ids + self.first_code if kind == CODE else ids
            own = (inner, torch.full_like(ids, kind))
            found += [mark(self.begin), own, mark(self.end)] if kind == CODE else [own]
        found += [mark(self.eos)] if ends else []
        return torch.cat([ids for ids, _ in found]), torch.cat([kinds for _, kinds in found])

    # --- reading ---

    def hidden(self, ids: Tensor, past: KVCache = EMPTY) -> tuple[Tensor, KVCache]:
        """Tokens [B, L] that follow the past → hidden states [B, L, D], and the past with them."""
        result: tuple[Tensor, KVCache] = self.transformer(self.embedding(ids), past)
        return result

    def forward(self, ids: Tensor) -> Tensor:
        """[B, L] → logits [B, L, V + 2 + K]"""
        logits: Tensor = self.head(self.hidden(ids)[0])
        return logits

    def logits_at(self, ids: Tensor, where: Tensor) -> Tensor:
        """Logits [M, V + 2 + K] only at the positions ``where`` [B, L]: the output layer is a large part of a small model."""
        logits: Tensor = self.head(self.hidden(ids)[0][where])
        return logits

    def word_logits(self, x: Tensor) -> Tensor:
        """[..., D] → [..., V]"""
        return F.linear(x, self.head.weight[: self.words])

    def code_logits(self, x: Tensor) -> Tensor:
        """[..., D] → [..., K]"""
        return F.linear(x, self.head.weight[self.first_code :])

    # --- captions of images ---

    def opening(self, codes: Tensor) -> Tensor:
        """[BOS] <image> codes </image>: [B, N + 3]"""

        def mark(token: int) -> Tensor:
            """A column of one token, [B, 1]."""
            return torch.full((len(codes), 1), token, device=codes.device)

        return torch.cat([mark(self.bos), mark(self.begin), codes + self.first_code, mark(self.end)], 1)

    @provides("text.logits", "image.codes", "text")
    def logits(self, codes: Tensor, text: Texts) -> Tensor:
        """[B, T − 1, V]: row t predicts token t + 1."""
        return self.caption_logits(codes, text.ids, text.mask)

    @provides("text.logits", "image.kv_cache", "text", paired=True)
    def logits_from_cache(self, images: Prefix, text: Texts) -> Tensor:
        """Like ``logits``, for images that were read before."""
        return self.continue_logits(images, text.ids, text.mask)

    @provides("image.code_logits", "image.codes", "text")
    def codes_given_text(self, codes: Tensor, text: Texts) -> Tensor:
        """[B, N, K]: row n predicts code n, given the caption and the codes before it."""
        return self.image_logits(codes, text.ids, text.mask)

    def caption_logits(self, codes: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """codes [B, N]; ids, mask [B, T] → [B, T − 1, V]; row t predicts text token t + 1."""
        x, _ = self.hidden(torch.cat([self.opening(codes), ids[:, 1:-1]], 1))
        return self.word_logits(x[:, codes.shape[1] + 2 :])

    @provides("image.kv_cache", "image.codes")
    def remember(self, codes: Tensor) -> Prefix:
        """Keys and values of the image, so that many captions can be tried on it."""
        return self.read(self.opening(codes))

    def read(self, ids: Tensor, before: Prefix | None = None) -> Prefix:
        """The cache of tokens [B, L], read after ``before``."""
        x, past = self.hidden(ids, before.cache if before else EMPTY)
        return Prefix(x[:, -1:], past)

    def continue_logits(self, images: Prefix, ids: Tensor, mask: Tensor) -> Tensor:
        """Like ``caption_logits``, for images that were read before."""
        x = images.last
        if ids.shape[1] > 2:
            x = torch.cat([x, self.hidden(ids[:, 1:-1], images.cache)[0]], 1)
        return self.word_logits(x)

    # --- images of captions ---

    def image_logits(self, codes: Tensor, ids: Tensor, mask: Tensor, bare: bool = False) -> Tensor:
        """codes [B, N]; ids, mask [B, T] → [B, N, K]; row n predicts code n, given the caption and the codes before it. bare:
        without a caption.
        """
        flags = (torch.full((len(codes),), value, device=codes.device) for value in (False, bare))
        sequence, kind = self.arrange(codes, ids, mask, *flags)
        before = (kind == CODE).roll(-1, 1)  # the position before each code predicts it
        if not bare:  # positions after the longest image are padding
            longest = int(mask.sum(1).max()) + codes.shape[1]
        else:
            longest = 2 + codes.shape[1]
        x, _ = self.hidden(sequence[:, : longest - 1])
        return self.code_logits(x[before[:, : longest - 1]].view(*codes.shape, -1))

    @provides("image.log_prior", "image.codes")
    def log_prior(self, codes: Tensor) -> Tensor:
        """log p(codes) without a caption, in nats: [B, N] → [B]. Meaningful if captions were left out in training."""
        ids = torch.tensor([[self.bos, self.eos]], device=codes.device).expand(len(codes), 2)
        logits = self.image_logits(codes, ids, torch.ones_like(ids, dtype=torch.bool), bare=True)
        return -F.cross_entropy(logits.float().transpose(1, 2), codes, reduction="none").sum(1)

    # --- writing and drawing ---

    def start(self, codes: Tensor) -> tuple[Tensor, KVCache]:
        """Logits [B, V] over a caption's first token, and the state, as ``inference/generate.py`` expects it."""
        return self._next(*self.hidden(self.opening(codes)))

    def step(self, ids: Tensor, past: KVCache) -> tuple[Tensor, KVCache]:
        """Logits [B, V] over the token after ``ids`` [B]."""
        return self._next(*self.hidden(ids[:, None], past))

    def _next(self, x: Tensor, past: KVCache) -> tuple[Tensor, KVCache]:
        return self.word_logits(x[:, -1]), past

    def start_text(self, ids: Tensor) -> tuple[Tensor, KVCache]:
        """Logits [B, V + 1] over the next word, or <image>, after sequences of one length, ids [B, t]; and the state."""
        return self._next_or_image(*self.hidden(ids))

    def step_text(self, ids: Tensor, past: KVCache) -> tuple[Tensor, KVCache]:
        """Logits [B, V + 1] over the word, or <image>, after ``ids`` [B]."""
        return self._next_or_image(*self.hidden(ids[:, None], past))

    def _next_or_image(self, x: Tensor, past: KVCache) -> tuple[Tensor, KVCache]:
        return F.linear(x[:, -1], self.head.weight[: self.words + 1]), past

    def start_image(self, ids: Tensor, guidance: float = 1.0) -> tuple[Tensor, Drawn]:
        """Logits [B, K] over the first code of images after sequences of one length, ids [B, t]: [BOS] words, or any parts of
        documents that begin with [BOS]; and the state.

        guidance: how strongly the caption is followed: logits = bare + guidance ·
        (captioned − bare), classifier-free guidance (CM3leon §3.2.2 after Ho & Salimans 2022); 1: as learned, 0: the
        caption is not heard.
        """
        mark = torch.full((len(ids), 1), self.begin, device=ids.device)
        return self._next_code(torch.cat([ids, mark], 1), torch.cat([ids[:, :1], mark], 1), Drawn(EMPTY, EMPTY, guidance))

    def step_image(self, ids: Tensor, before: Drawn) -> tuple[Tensor, Drawn]:
        """Logits [B, K] over the code after the codes ``ids`` [B]."""
        following = (ids + self.first_code)[:, None]
        return self._next_code(following, following, before)

    def _next_code(self, ids: Tensor, bare_ids: Tensor, before: Drawn) -> tuple[Tensor, Drawn]:
        x, seen = self.hidden(ids, before.seen)
        logits = self.code_logits(x[:, -1]).float()
        if before.guidance == 1:
            return logits, Drawn(seen, EMPTY, 1.0)
        y, bare = self.hidden(bare_ids, before.bare)
        without = self.code_logits(y[:, -1]).float()
        return without + before.guidance * (logits - without), Drawn(seen, bare, before.guidance)
