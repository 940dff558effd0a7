"""Contrast between granularities (after GEXIA, Wang et al. 2025): frames, pieces and whole clips against the texts of pieces, all
of them as one text, and a short text.

Shapes: B samples, M rows of what is seen, N texts, E embedding.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from diptych.core.errors import DiptychError
from diptych.objectives.base import Scaled

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM

SEEN = {"frames": "segments.frames.embedding", "pieces": "segments.embedding", "whole": "segments.long_embedding"}
READ = {"pieces": "segments.texts.embedding", "whole": "segments.story.embedding", "short": "summary.embedding"}


def granular_info_nce(
    seen: Tensor, read: Tensor, scale: Tensor | float, samples: int, meaning: Tensor | None = None, rows: slice | None = None
) -> Tensor:
    """Symmetric InfoNCE of rows of two granularities, seen [M, E] and read [N, E], unit vectors in the order of the ``samples``.

    Rows of the finer one belong to the row of the coarser one that holds them: such a row has several partners, and its loss is the
    mean of −log p over these. meaning: of the units of the coarser one, [min(M, N)]; different units that mean the same are left
    out of each other's denominators. rows: only these samples' rows are queries (a process's share).
    """
    units = min(len(seen), len(read))
    own = rows or slice(0, samples)
    unit_of = [torch.arange(len(x), device=x.device) // (len(x) // units) for x in (seen, read)]
    logits = scale * seen @ read.T
    partner = unit_of[0][:, None] == unit_of[1]
    if meaning is not None:
        alike = meaning[unit_of[0]][:, None] == meaning[unit_of[1]]
        logits = logits.masked_fill(alike & ~partner, -math.inf)
    total = logits.new_zeros(())
    for matrix, pairs, count in ((logits, partner, len(seen)), (logits.T, partner.T, len(read))):
        queries = slice(own.start * count // samples, own.stop * count // samples)
        log_p = matrix[queries].log_softmax(1)
        share = pairs[queries]
        total = total - (log_p.masked_fill(~share, 0.0).sum(1) / share.sum(1)).mean() / 2
    return total


class Granularities(Scaled):
    """The mean of ``granular_info_nce`` over all pairs of granularities, with one learned scale.

    seen: of clips in pieces (the field ``segments``): ``frames``, ``pieces``, and ``whole``, all pieces as one long clip. read:
    the text of each piece (``pieces``), all of them as one long text (``whole``: the paper's integration), and ``short``, the field
    ``summary`` (its compression; the paper's is written by a language model). false_negatives: as in ``InfoNCE``.
    """

    needs = ("segments",)
    trains = ("video.embedding", "text.embedding")  # by the same weights

    def __init__(
        self,
        model: VLM,
        *,
        temperature: float = 0.07,
        max_scale: float = 100.0,
        seen: tuple[Literal["frames", "pieces", "whole"], ...] = ("frames", "pieces", "whole"),
        read: tuple[Literal["pieces", "whole", "short"], ...] = ("pieces", "whole", "short"),
        false_negatives: Literal["mask", "keep"] = "mask",
    ):
        super().__init__(model, temperature=temperature, max_scale=max_scale)
        if not seen or not read or len(set(seen)) < len(seen) or len(set(read)) < len(read):
            raise DiptychError("objective granularities: seen and read name at least one granularity each, none of them twice")
        self.seen, self.read, self.masks = tuple(seen), tuple(read), false_negatives == "mask"
        self.couples = (*(SEEN[name] for name in self.seen), *(READ[name] for name in self.read))

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        seen, read = [p[SEEN[name]] for name in self.seen], [p[READ[name]] for name in self.read]
        segments = p["segments"]
        total: Tensor = seen[0].new_zeros(())
        with torch.autocast(total.device.type, enabled=False):
            for a in seen:
                for b in read:
                    of = segments.texts if min(len(a), len(b)) > p.size else segments.story
                    total = total + granular_info_nce(a, b, self.scale, p.size, of.meaning if self.masks else None, p.rows)
        return total / (len(seen) * len(read))
