"""Frames of all clips, one after the other, as one row a clip.

Shapes: n frames of all clips, B clips, F frames a clip.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diptych.core.batch import Videos
from diptych.core.errors import DiptychError


def owners(video: Videos, n: int, device: torch.device) -> Tensor:
    """The clip of each of n frames, or the piece of a clip (``Videos.rows``), int64 [n]; a field without owners has clips of one
    frame.
    """
    rows = video.rows
    return torch.arange(n, device=device) if rows is None else rows


def places(owner: Tensor) -> Tensor:
    """The place of each frame in its clip, from 0, int64 [n]. The frames of a clip follow each other."""
    counts = torch.bincount(owner)
    return torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner]


def by_clip(x: Tensor, owner: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Frames [n, …] as clips [B, longest, …], zeros where a clip has ended, and where frames are real, bool [B, longest].

    longest: the number of columns, which does not depend on the batch, so that pieces of a batch can be put together. DiptychError
    for a clip with more frames.
    """
    place = places(owner)
    most = int(place.max()) + 1 if len(place) else 0
    if most > longest:
        raise DiptychError(
            f"a clip has {most} frames, and parts.time has places for {longest}; set parts.time.frames={most}, or read fewer by "
            f"data.fields: {{video: {{kind: video, frames: {longest}}}}}"
        )
    clips = int(owner[-1]) + 1 if len(owner) else 0
    rows = x.new_zeros(clips, longest, *x.shape[1:]).index_put((owner, place), x)
    mask = torch.zeros(clips, longest, dtype=torch.bool, device=x.device)
    mask[owner, place] = True
    return rows, mask


def read_frames(owner: Tensor, frames: int) -> Tensor:
    """The frames of each clip that are read, as rows of all frames, int64 [B, frames]: evenly spread, each the middle of its share.
    Of a clip with fewer frames some are read several times, so that every clip has the same number of tokens.
    """
    lengths = torch.bincount(owner)
    start = lengths.cumsum(0) - lengths
    place = (torch.arange(frames, device=owner.device) + 0.5)[None] * lengths[:, None] / frames
    return start[:, None] + place.long()


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean over the second dimension where ``mask`` is true: x [B, F, D], mask [B, F] → [B, D]."""
    weights = mask[..., None].to(x.dtype)
    return (x * weights).sum(1) / weights.sum(1)
