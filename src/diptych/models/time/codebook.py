"""Codes of short clips by hierarchical k-means (VideoBERT, Sun et al. 2019, §4.1).

Shapes: n features, S short clips of a clip, E width of a feature, K branches of each node, L levels.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.core.batch import Tokens, Videos
from diptych.core.errors import DiptychError
from diptych.core.graph import provides
from diptych.data.text import BOS, PAD, SPECIALS
from diptych.models.build import Build
from diptych.models.layers.attention import ACTIVATIONS
from diptych.models.part import Part
from diptych.models.space import unit
from diptych.models.time.clips import by_clip, owners

ROUNDS = 25  # of Lloyd's algorithm, at most


def k_means(x: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Centres [k, E] of features x [n, E], float64: Lloyd's algorithm from distant features (k-means++, Arthur & Vassilvitskii
    2007). With fewer than k different features, the last centres repeat the first, and no feature is nearest to them.
    """
    chosen = [x[int(torch.randint(len(x), (1,), generator=generator))]]
    while len(chosen) < k:
        gap = torch.cdist(x, torch.stack(chosen)).square().amin(1)
        if float(gap.max()) <= 1e-12:
            break
        chosen.append(x[int(torch.multinomial(gap, 1, generator=generator))])
    centres = torch.stack(chosen)
    for _ in range(ROUNDS):
        nearest = torch.cdist(x, centres).argmin(1)
        counts = torch.bincount(nearest, minlength=len(centres))
        moved = torch.zeros_like(centres).index_add_(0, nearest, x) / counts.clamp(min=1)[:, None]
        moved = torch.where(counts[:, None] > 0, moved, centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return torch.cat([centres, centres[:1].expand(k - len(centres), -1)])


class Codebook(nn.Module):
    """A tree of centres: each node has ``branches`` of them, and a feature descends to the nearest one ``levels`` times. It is
    fitted once, to the first ``samples`` features that it is given, and is part of a run's weights from then on.
    """

    seen: Tensor
    count: Tensor
    fitted: Tensor

    def __init__(self, width: int, branches: int, levels: int, samples: int):
        super().__init__()
        self.branches, self.levels, self.samples = branches, levels, samples
        for level in range(levels):
            self.register_buffer(f"centres{level}", torch.zeros(branches**level, branches, width))
        self.register_buffer("seen", torch.zeros(samples, width))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def centres(self, level: int) -> Tensor:
        """Of the nodes of a level, [K^level, K, E]."""
        centres: Tensor = self.get_buffer(f"centres{level}")
        return centres

    @torch.no_grad()
    def collect(self, features: Tensor) -> None:
        """Keep features [n, E], as far as there is room for them; when there is none left, the centres are fitted."""
        if bool(self.fitted):
            return
        start = int(self.count)
        new = features[: self.samples - start]
        self.seen[start : start + len(new)] = new.to(self.seen)
        self.count += len(new)
        if int(self.count) == self.samples:
            self.fit()

    @torch.no_grad()
    def fit(self) -> None:
        """The centres of all levels, from the features that were kept: the same ones on every process. DiptychError if there are
        none.
        """
        n = int(self.count)
        if not n:
            raise DiptychError(
                "the codebook has no features to fit its centres to: a stage with the objective `codebook` comes before the one "
                "that reads codes, and has at least one step; give a larger budget, or that stage a larger share"
            )
        x, generator = self.seen[:n].double().cpu(), torch.Generator().manual_seed(n)
        node = torch.zeros(n, dtype=torch.long)
        for level in range(self.levels):
            centres = torch.zeros(self.centres(level).shape, dtype=torch.float64)
            for number in sorted(set(node.tolist())):
                centres[number] = k_means(x[node == number], self.branches, generator)
            self.centres(level).copy_(centres)
            node = self._descend(x, node, centres)
        self.fitted.fill_(True)

    def _descend(self, x: Tensor, node: Tensor, centres: Tensor) -> Tensor:
        """The node of the next level that each of x [n, E] belongs to, from its node of this one."""
        nearest = (x[:, None] - centres[node]).square().sum(-1).argmin(-1)
        return node * self.branches + nearest

    @torch.no_grad()
    def codes(self, features: Tensor) -> Tensor:
        """Features [n, E] → the numbers of their leaves, int64 [n], below K^L."""
        node = torch.zeros(len(features), dtype=torch.long, device=features.device)
        for level in range(self.levels):
            node = self._descend(features.float(), node, self.centres(level))
        return node

    @torch.no_grad()
    def error(self, features: Tensor) -> Tensor:
        """The mean squared distance of features to the centres of their leaves; to their mean, before the centres are fitted."""
        if not bool(self.fitted):
            return (features - features.mean(0)).square().sum(-1).mean()
        codes = self.codes(features)
        leaves = self.centres(self.levels - 1).flatten(0, 1)
        return (features.float() - leaves[codes]).square().sum(-1).mean()


class ClipCodes(Part):
    """A clip as short clips of ``span`` frames, each with a feature, and with a code of a codebook that is fitted to these.

    A feature is made of the frames' pooled vectors, in their order, by two linear layers; it has unit length, and the clip's
    embedding is their mean, so that a contrastive stage trains them. Then a stage with the objective ``codebook``, in which vision
    and time do not change, fits ``branches`` to the power of ``levels`` centres to ``samples`` features. frames: the most of a
    clip. A clip that ends within a short clip repeats its last frame there.
    """

    can = frozenset({"embed_image"})

    def __init__(
        self,
        build: Build,
        *,
        span: Annotated[int, Field(ge=1)] = 2,
        frames: Annotated[int, Field(ge=1)] = 8,
        branches: Annotated[int, Field(ge=2)] = 12,
        levels: Annotated[int, Field(ge=1, le=6)] = 4,
        samples: Annotated[int, Field(ge=1)] = 4096,
    ):
        super().__init__()
        build.require(frames % span == 0, f"frames: {frames} is not a multiple of span, {span}")
        build.require(branches**levels <= 2**17, f"levels: {branches} ** {levels} codes are more than 131,072")
        self.span, self.frames, self.spans, self.vocabulary = span, frames, frames // span, branches**levels
        self.width, given = build.embed_dim, build.width_of("vision")
        self.mlp = nn.Sequential(nn.Linear(span * given, given), ACTIVATIONS[build.size.activation](), nn.Linear(given, self.width))
        self.codebook = Codebook(self.width, branches, levels, samples)

    @provides("{video}.features", "{video}.frames.tokens", "{video}")
    def features(self, frames: Tokens, video: Videos) -> Tokens:
        """Unit vectors of the short clips [B, S, E], and their mean, of unit length, [B, E]."""
        owner = owners(video, len(frames.pooled), frames.pooled.device)
        features: Tokens = self(*by_clip(frames.pooled, owner, self.frames))
        return features

    def forward(self, x: Tensor, mask: Tensor) -> Tokens:
        """Frames [B, F, D], mask [B, F] → features [B, S, E], pooled [B, E], mask [B, S]"""
        last = mask.sum(1, keepdim=True) - 1
        at = torch.arange(self.frames, device=x.device).minimum(last)
        x = x.gather(1, at[..., None].expand_as(x)).view(len(x), self.spans, -1)
        there = mask.view(len(mask), self.spans, self.span).any(-1)
        tokens = unit(self.mlp(x)) * there[..., None]
        return Tokens(tokens, unit(tokens.sum(1)), there)

    @provides("{video}.embedding", "{video}.features")
    def embedding(self, features: Tokens) -> Tensor:
        """[B, E]"""
        return features.pooled

    @provides("{video}.codes", "{video}.features")
    def codes(self, features: Tokens) -> Tensor:
        """Ids as those of a text, int64 [B, 1 + S]: [BOS], the codes from ``len(SPECIALS)`` on, PAD where a clip has ended."""
        mask = features.mask
        assert mask is not None
        if not bool(self.codebook.fitted):  # its stage was too short to fill it
            self.codebook.fit()
        ids = torch.full(mask.shape, PAD, device=mask.device)
        ids[mask] = self.codebook.codes(features.tokens[mask]) + len(SPECIALS)
        return torch.cat([ids.new_full((len(ids), 1), BOS), ids], 1)
