"""ViLT (Kim et al. 2021): a single transformer over patches and words, trained by matching, word-patch alignment and masked words.

    PYTHONPATH=examples/vilt diptych train examples/vilt/recipe.yaml --out runs/vilt
    PYTHONPATH=examples/vilt diptych evaluate runs/vilt --tasks retrieval?n=50,controlled?n=100

Shapes: B batch, N patches, T tokens of a text, D width.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.core.batch import Images, Texts, Tokens
from diptych.core.encodings import Pass
from diptych.core.errors import DiptychError
from diptych.core.graph import provides
from diptych.core.sample import Sample
from diptych.data.fields import Context, Draw
from diptych.data.fields.base import stacked
from diptych.data.fields.image import ImageField
from diptych.data.source import BrokenItem
from diptych.data.text import MASK, SPECIALS
from diptych.models.build import Build
from diptych.models.layers.attention import Activation, Transformer
from diptych.models.layers.masks import padding_bias
from diptych.models.part import Part, TextTower, VisionTower
from diptych.models.text.towers import sinusoids
from diptych.models.vision.towers import sincos_2d
from diptych.objectives import Objective
from diptych.objectives.maskvlm import MaskedWords

# --- the image that a text is shown with ---


@dataclass
class ShownImages(Images):
    """Images beside the batch's texts, some of which belong to other samples. own [n] bool: the image is the sample's own."""

    own: Tensor | None = None

    row_wise = ("own", *Images.row_wise)


class ShownField(ImageField):
    """The sample's own image or, half of the time, another one, drawn at random from the whole source (ViLT, §3.2)."""

    derived = True

    def __init__(self, name: str, context: Context):
        super().__init__(name, context.image_size, context.augment)
        if context.source is None:
            raise DiptychError(f"the field '{name}' draws other images from the source, and there is none")
        self.source, self.drawn = context.source, True

    @classmethod
    def build(cls, name: str, context: Context) -> ShownField:
        return cls(name, context)

    def fit(self, sample: Sample, rng: Callable[[], random.Random]) -> Any:
        numbers = rng()
        if numbers.random() < 0.5:
            return self.fitted(sample, numbers), True
        for _ in range(100):
            try:
                other = self.source[numbers.randrange(len(self.source))]
            except BrokenItem:
                continue
            if other.image is not None and other.id != sample.id:
                return self.fitted(other, numbers), False
        raise DiptychError(f"{self.source.address}: no other image found to show beside {sample.id}")

    def fitted(self, sample: Sample, numbers: random.Random) -> Any:
        if sample.image is None:
            raise BrokenItem(sample.id, "no image")
        return self.augment(sample.image, numbers, sample.captions)

    def collate(self, rows: Sequence[Draw]) -> ShownImages:
        images, own = zip(*(row.fitted[self.name] for row in rows), strict=True)
        return ShownImages(stacked(images), own=torch.tensor(own))


# --- the model ---


class Patches(VisionTower):
    """A linear map of each patch, with its position and the vector of the modality. A class token stands first."""

    extra = 1

    def __init__(self, build: Build, *, width: int | None = None, patch: int = 8):
        super().__init__()
        build.require(build.image_size % patch == 0, f"image_size {build.image_size} is not a multiple of the patch size {patch}")
        self.width, self.patch, self.grid = width or build.size.width, patch, build.image_size // patch
        self.tokens = self.grid**2
        self.stem = nn.Conv2d(3, self.width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(self.width))
        waves = 0.25 * sincos_2d(self.grid, self.grid, self.width)  # no louder than what the patches show
        self.positions = nn.Parameter(torch.cat([torch.zeros(1, self.width), waves]))
        self.modality = nn.Parameter(torch.randn(self.width) * 0.02)

    def forward(self, pixels: Tensor, keep: Tensor | None = None) -> Tokens:
        """[B, 1 + N, D]"""
        x = self.stem(pixels).flatten(2).transpose(1, 2) + self.positions[1:]
        if keep is not None:
            x = x.gather(1, keep[..., None].expand(-1, -1, self.width))
        x = torch.cat([(self.class_token + self.positions[0]).to(x.dtype).expand(len(x), 1, -1), x], 1) + self.modality
        return Tokens(x, x[:, 0])


class Words(TextTower):
    """A vector for each token, with its position and the vector of the modality."""

    space = ""  # neither side has an embedding of its own
    limited = True

    def __init__(self, build: Build, *, width: int | None = None, eps: float = 1e-12):
        super().__init__()
        self.width = width or build.size.width
        self.embedding = nn.Embedding(len(build.tokenizer), self.width)
        self.positions = nn.Parameter(sinusoids(build.max_length, self.width))
        self.norm = nn.LayerNorm(self.width, eps)
        self.modality = nn.Parameter(torch.randn(self.width) * 0.02)

    def forward(self, ids: Tensor, mask: Tensor, strings: Sequence[str] = ()) -> Tokens:
        """[B, T, D]"""
        x = self.norm(self.embedding(ids) + self.positions[: ids.shape[1]]) + self.modality
        return Tokens(x, x[:, 0], mask)


class Stream(Part):
    """The transformer over [words, patches]. Both sides are pooled at the first word, by a linear map and tanh."""

    def __init__(
        self,
        build: Build,
        *,
        depth: int | None = None,
        heads: int | None = None,
        hidden: int | None = None,
        activation: Activation | None = None,
        eps: float = 1e-12,
        dropout: float = 0.0,
    ):
        super().__init__()
        size = build.size
        self.width = build.width_of("text")
        build.require(build.width_of("vision") == self.width, "patches and words must be equally wide")
        self.transformer = Transformer(
            self.width, depth or size.depth, heads or size.heads, None, activation or size.activation, dropout, hidden, eps
        )
        self.pooler = nn.Linear(self.width, self.width)

    @provides(("text.fused", "image.fused"), "text.tokens", "image.tokens")
    @provides(("text.matched", "shown.matched"), "text.tokens", "shown.tokens")
    def read(self, text: Tokens, image: Tokens) -> tuple[Tokens, Tokens]:
        """Text tokens [B, T, D] and image tokens [B, 1 + N, D] after attention to each other."""
        x = torch.cat([text.tokens, image.tokens], 1)
        bias = None
        if text.mask is not None:
            seen = torch.cat([text.mask, text.mask.new_ones(image.tokens.shape[:2])], 1)
            bias = padding_bias(seen)
        x = self.transformer(x, bias)
        pooled, T = self.pooler(x[:, 0]).tanh(), text.tokens.shape[1]
        return Tokens(x[:, :T], pooled, text.mask), Tokens(x[:, T:], pooled)


# --- objectives ---


class ViltMatching(Objective):
    """Does this image belong to this text? One linear layer on the pooled token."""

    parts = ("fusion",)
    needs = ("text.matched", "shown")
    scores_as = "matching"

    def __init__(self, model: Any):
        super().__init__(model)
        self.head = nn.Linear(model.part("fusion").width, 1)

    def forward(self, p: Pass) -> Tensor:
        return F.binary_cross_entropy_with_logits(self.head(p["text.matched"].pooled)[:, 0].float(), p["shown"].own.float())

    def pair_scores(self, p: Pass, images: Tensor, texts: Tensor) -> Tensor:
        return self.head(p.pairs(image=images, text=texts)["text.fused"].pooled)[:, 0].float()


@torch.no_grad()
def transport_plan(cost: Tensor, words: Tensor, beta: float = 0.5, steps: int = 50) -> Tensor:
    """The plan [B, T, N] that moves the mass of the words, equal for each, to the patches, equal for each, at the least cost.

    Inexact proximal point method (IPOT, Xie et al. 2020, algorithm 1, one inner step). cost [B, T, N]; words [B, T] bool.
    """
    mass = words.to(cost.dtype) / words.sum(1, keepdim=True)  # [B, T]
    share = 1 / cost.shape[2]
    kernel = torch.exp(-cost / beta)
    plan = words[..., None].expand_as(cost).to(cost.dtype)
    of_words, tiny = mass, torch.finfo(cost.dtype).tiny
    for _ in range(steps):
        q = kernel * plan
        of_patches = share / torch.einsum("btn,bt->bn", q, of_words).clamp(min=tiny)
        of_words = mass / torch.einsum("btn,bn->bt", q, of_patches).clamp(min=tiny)
        plan = of_words[..., None] * q * of_patches[:, None]
    return plan


def transport_distance(text: Tensor, words: Tensor, image: Tensor, beta: float = 0.5, steps: int = 50) -> Tensor:
    """[B]: what the cheapest transport of words to patches costs, by cosine distance. text [B, T, D], words [B, T] bool, image [B, N, D].

    The gradient is that of the cost under the plan, which is held fixed.
    """
    cost = 1 - F.normalize(text, dim=-1) @ F.normalize(image, dim=-1).transpose(1, 2)  # [B, T, N]
    return (transport_plan(cost, words, beta, steps) * cost).sum((1, 2))


class WordPatchAlignment(Objective):
    """The transport distance between words and patches: small where the image is the text's own, large where it is not (ViLT, §3.2)."""

    parts = ("fusion",)
    needs = ("text.matched", "shown.matched", "text", "shown")

    def __init__(self, model: Any, *, beta: float = 0.5, steps: int = 50):
        super().__init__(model)
        self.beta, self.steps = beta, steps

    def forward(self, p: Pass) -> Tensor:
        text, image, own = p["text.matched"].tokens.float(), p["shown.matched"].tokens[:, 1:].float(), p["shown"].own
        with torch.autocast(text.device.type, enabled=False):
            distance = transport_distance(text, real_words(p["text"]), image, self.beta, self.steps)
        return torch.where(own, distance, -distance).mean()


def real_words(text: Texts) -> Tensor:
    """[B, T] bool, True at tokens of words: neither padding, nor the tokens at the ends. A hidden word is one."""
    return text.mask & ((text.ids >= len(SPECIALS)) | (text.ids == MASK))


def hide_words(ids: Tensor, starts: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Replace all tokens of a random choice of whole words by [MASK]: the share of each text's words, rounded, at least one.

    ids [B, T]; starts [V] bool, tokens with which a word begins → masked ids [B, T], hidden [B, T] bool.
    """
    real = ids >= len(SPECIALS)
    begins = real & starts[ids]
    word = begins.cumsum(1)  # [B, T], from 1; 0 before the first
    count = word[:, -1:]
    places = torch.arange(1, ids.shape[1] + 1, device=ids.device)
    noise = torch.rand(ids.shape, device=ids.device).masked_fill(places > count, 2.0)  # one number a word
    chosen = noise.argsort(1).argsort(1) < (count * share).round().clamp(min=1)
    hidden = real & (word > 0) & chosen.gather(1, (word - 1).clamp(min=0))
    return ids.masked_fill(hidden, MASK), hidden


class WholeWords(MaskedWords):
    """Masked words, of which all tokens are hidden (ViLT, §3.3). The mean over texts of the mean over their hidden tokens."""

    starts: Tensor

    def __init__(self, model: Any, *, share: float = 0.15):
        super().__init__(model, share=share)
        starts = torch.zeros(len(model.tokenizer), dtype=torch.bool)
        for token, number in json.loads(model.tokenizer.to_json())["model"]["vocab"].items():
            starts[number] = token.startswith("Ġ")  # a byte-level tokenizer's space
        self.register_buffer("starts", starts, persistent=False)

    def forward(self, p: Pass) -> Tensor:
        text = p["text"]
        ids, hidden = hide_words(text.ids, self.starts, self.share)
        x = p.view(text=replace(text, ids=ids))["text.fused"].tokens
        losses = F.cross_entropy(self.head(x[hidden]).float(), text.ids[hidden], reduction="none")
        weights = (1 / hidden.sum(1).clamp(min=1))[hidden.nonzero()[:, 0]]
        return (losses * weights).sum() / len(ids)

    def terms(self, p: Pass) -> int:
        return p.size
