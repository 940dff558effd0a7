"""All tokens of all frames of a clip as one sequence, for parts that attend to them (COSA, Chen et al. 2024, §3.2).

Shapes: n frames of all clips, B clips, F frames a clip at most, N tokens of a frame, D width.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.core.batch import Segments, Tokens, Videos
from diptych.core.graph import provides
from diptych.models.build import Build
from diptych.models.part import Part
from diptych.models.time.clips import by_clip, masked_mean, owners, places


class ClipTokens(Part):
    """The tokens of the frames, each with the learned vector of its frame's place in the clip.

    frames: places, and the largest number of frames of a clip.
    """

    replicated: tuple[str, ...] = ("places",)

    def __init__(self, build: Build, *, frames: Annotated[int, Field(ge=1)] = 8):
        super().__init__()
        self.width, self.frames = build.width_of("vision"), frames
        self.places = nn.Parameter(torch.randn(frames, self.width) * 0.02)

    @provides("{video}.tokens", "{video}.frames.tokens", "{video}")
    def read(self, frames: Tokens, video: Videos) -> Tokens:
        """tokens [B, F·N, D], pooled [B, D] (the mean over frames, without their places), mask [B, F·N]"""
        owner = owners(video, len(frames.pooled), frames.pooled.device)
        return self._joined(frames, owner, places(owner), self.places)

    def _joined(self, frames: Tokens, owner: Tensor, place: Tensor, vectors: Tensor, columns: int | None = None) -> Tokens:
        """The tokens of the frames of each owner one after the other, each with the vector of its place. columns: of frames; None:
        as many as there are places.
        """
        columns = columns or self.frames
        tokens = frames.tokens + vectors.to(frames.tokens.dtype)[place][:, None]
        rows, mask = by_clip(tokens, owner, columns)
        pooled, _ = by_clip(frames.pooled, owner, columns)
        N = rows.shape[2]
        return Tokens(rows.flatten(1, 2), masked_mean(pooled, mask), mask.repeat_interleave(N, 1))


class SegmentTokens(ClipTokens):
    """``ClipTokens`` for clips in pieces (the field kind ``segments``): the tokens of each piece, and those of the whole clip.

    unknown: vectors for frames whose place in the clip is withheld (``data.fields: {segments: {shuffle: 0.4}}``); as many as there
    are pieces.
    """

    replicated = ("places", "unknown")

    def __init__(self, build: Build, *, frames: Annotated[int, Field(ge=1)] = 8, unknown: Annotated[int, Field(ge=0)] = 0):
        super().__init__(build, frames=frames)
        self.unknown = nn.Parameter(torch.randn(unknown, self.width) * 0.02) if unknown else None

    @provides("{video}.tokens", "{video}.frames.tokens", "{video}")
    def read(self, frames: Tokens, video: Videos) -> Tokens:
        """Of a clip as ``ClipTokens``; of clips in pieces, a row for each piece, [B · pieces, f·N, D] for f frames a piece."""
        owner = owners(video, len(frames.pooled), frames.pooled.device)
        columns = len(owner) // (int(owner[-1]) + 1) if isinstance(video, Segments) else None  # all pieces have as many
        return self._joined(frames, owner, places(owner), self.places, columns)

    @provides("{video}.long_tokens", "{video}.frames.tokens", "{video}")
    def read_whole(self, frames: Tokens, video: Videos) -> Tokens:
        """A row for each clip, [B, F·N, D], whether in pieces or not; each frame with the vector of the place that the batch gives
        for it, known or unknown.
        """
        if not isinstance(video, Segments):
            return self.read(frames, video)
        assert video.owner is not None and video.place is not None
        place = video.place
        vectors: list[Tensor] = [self.places]
        if self.unknown is not None:
            place, vectors = torch.where(place < 0, self.frames - 1 - place, place), [self.places, self.unknown]
        return self._joined(frames, video.owner, place, torch.cat(vectors), len(place) // (int(video.owner[-1]) + 1))
