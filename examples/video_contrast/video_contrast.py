"""Contrast of clips and captions: a transformer over the frames that the image tower has read, and the test that it tells directions apart.

    PYTHONPATH=examples/video_contrast diptych train examples/video_contrast/recipe.yaml --out runs/clips
    PYTHONPATH=examples/video_contrast python -m video_contrast runs/clips

Shapes: B clips, F frames of a clip, D width.
"""

from __future__ import annotations

import random
import re
import sys
from typing import Any, Literal

import torch
from torch import Tensor, nn

import diptych as dp
from diptych.core.batch import Batch, Tokens, Videos
from diptych.core.graph import provides
from diptych.core.sample import Sample
from diptych.data.fields import Draw
from diptych.data.fields.text import tokenized
from diptych.data.fields.video import VideoField
from diptych.data.source import Source
from diptych.models.build import Build
from diptych.models.layers.attention import Transformer
from diptych.models.layers.masks import padding_bias
from diptych.models.part import Part
from diptych.models.text.towers import sinusoids
from diptych.objectives.scores import Similarity

OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up", "upwards": "downwards", "downwards": "upwards"}


class TimeTransformer(Part):
    """A transformer over the pooled frames of a clip, each with its place in time.

    sees: all frames in order; ``one``, the middle one; or all, ``unordered`` (without their places). The latter two are controls: they cannot know a direction.
    """

    def __init__(self, build: Build, *, depth: int = 1, longest: int = 64, sees: Literal["all", "one", "unordered"] = "all"):
        super().__init__()
        self.width, self.sees = build.width_of("vision"), sees
        self.places = nn.Parameter(sinusoids(longest, self.width))
        self.transformer = Transformer(self.width, depth, build.size.heads, activation=build.size.activation)

    @provides("{video}.tokens", "{video}.frames.tokens", "{video}")
    def read(self, frames: Tokens, video: Videos) -> Tokens:
        """Frames [B, F, D], pooled as their mean, from those of all clips one after the other."""
        owner = video.owner if video.owner is not None else torch.arange(len(frames.pooled), device=frames.pooled.device)
        count = owner.bincount()  # [B]
        place = torch.arange(len(owner), device=owner.device) - (count.cumsum(0) - count)[owner]
        x, mask = frames.pooled, None
        if self.sees == "one":
            x = x[place == (count // 2)[owner]][:, None]
        else:
            mask = place.new_zeros((len(count), int(count.max())), dtype=torch.bool)
            mask[owner, place] = True
            x = x.new_zeros((*mask.shape, self.width)).index_put((owner, place), x)
            x = x + self.places[: x.shape[1]] if self.sees == "all" else x
        x = self.transformer(x, padding_bias(mask))
        real = torch.ones_like(x[..., :1]) if mask is None else mask[..., None].to(x.dtype)
        return Tokens(x, (x * real).sum(1) / real.sum(1), mask)


class ClipSimilarity(Similarity):
    """The cosine of a clip's embedding and a text's."""

    needs = ("video.embedding", "text.embedding")


def reversed_caption(text: str) -> str:
    """The caption with every direction turned round."""
    return re.sub(r"\w+", lambda word: OPPOSITE.get(word[0], word[0]), text)


def scores(trained: Any, samples: list[Sample], texts: list[str]) -> Tensor:
    """Every clip with every text."""
    field, model = VideoField("video", trained.model.image_size), trained.model
    clips = field.collate([Draw(0, i, s, {"video": field.fit(s, random.Random)}) for i, s in enumerate(samples)])
    batch = Batch({"video": clips, "text": tokenized(model.tokenizer, texts)}, len(samples))
    with torch.inference_mode():
        return trained.scorer.all_scores(model.encode(batch.to(trained.device))).cpu()


def judge(run: str, source: Source | None = None, n: int = 100, moving: int = 400) -> dict[str, float]:
    """Recall@1 among n test clips that are told apart by their captions (chance: 1/n), and how often a clip is nearer to its caption than to the one with the
    direction turned round (chance: 0.5), over at most ``moving`` clips."""
    trained = dp.load(run)
    source = source or dp.open_source(trained.recipe.data.train).split("test")
    found = [source[i] for i in range(min(len(source), 20 * n))]
    distinct = list({s.meanings[0]: s for s in found}.values())[:n]
    table = scores(trained, distinct, [s.captions[0] for s in distinct])
    right = torch.arange(len(distinct))
    moved = [s for s in found if reversed_caption(s.captions[0]) != s.captions[0]][:moving]
    told = [s.captions[0] for s in moved]
    own, other = (scores(trained, moved, texts).diagonal() for texts in (told, list(map(reversed_caption, told))))
    return {
        "text of a clip": (table.argmax(1) == right).float().mean().item(),
        "clip of a text": (table.argmax(0) == right).float().mean().item(),
        "direction": (own > other).float().mean().item(),
    }


if __name__ == "__main__":
    print(judge(sys.argv[1]))
