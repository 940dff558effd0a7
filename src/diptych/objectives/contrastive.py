"""Contrastive objectives: matching pairs against the rest of the batch.

Shapes: B batch, E embedding, M further texts, R the rows that this process computes. Losses are computed in float32, for towers of
any precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diptych.core.encodings import IMAGE_EMBEDDING, TEXT, TEXT_EMBEDDING
from diptych.core.errors import DiptychError
from diptych.models.mixup import Mixer, partners
from diptych.objectives.base import Objective, Scaled
from diptych.objectives.losses.momentum import FeatureQueue, momentum_info_nce
from diptych.objectives.losses.tiled import tiled_info_nce, tiled_sigmoid_sum

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM

ROWS = 1024  # of the logit matrix at a time, in ``mixed_info_nce``
TILED_FROM = 2**22  # entries of the logit matrix from which a loss is computed tile by tile


def same_meaning(meaning: Tensor | None, rows: slice | None = None) -> Tensor | None:
    """[R, B] bool, True where i ≠ j mean the same: these are not negatives of each other. None if there are no such pairs."""
    if meaning is None:
        return None
    same = (meaning[:, None] == meaning[None, :]).fill_diagonal_(False)
    same = same if rows is None else same[rows]
    return same if bool(same.any()) else None


def info_nce(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    meaning: Tensor | None = None,
    negatives: Tensor | None = None,
    rows: slice | None = None,
) -> Tensor:
    """Symmetric InfoNCE (Oord et al. 2018; CLIP, Radford et al. 2021, figure 3).

    image, text: [B, E] unit vectors, row i of both belonging together; scale: 1 / temperature; meaning: [B], rows that mean the
    same are left out of each other's denominator; negatives: [M, E] texts that match no image, which are extra columns of the
    image-to-text side (NegCLIP, Yuksekgonul et al. 2023); rows: only these images and texts are queries, against all (a process's
    share).
    """
    own = slice(0, len(image)) if rows is None else rows
    logits = scale * image[own] @ text.T  # [R, B]
    back = logits.T if rows is None else scale * text[own] @ image.T  # [R, B]
    same = same_meaning(meaning, rows)
    if same is not None:
        logits, back = logits.masked_fill(same, float("-inf")), back.masked_fill(same, float("-inf"))
    columns = logits if negatives is None else torch.cat([logits, scale * image[own] @ negatives.T], dim=1)  # [R, B + M]
    target = torch.arange(own.start, own.stop, device=image.device)
    return (F.cross_entropy(columns, target) + F.cross_entropy(back, target)) / 2


def mixed_info_nce(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    share: float,
    meaning: Tensor | None = None,
    rows: slice | None = None,
) -> Tensor:
    """InfoNCE in which row i belongs to its own column with weight ``share`` = λ and to its partner's with 1 − λ:
    −λ log p(i) − (1 − λ) log p(partner of i), the mean of both directions.

    image, text: [B, E] unit vectors, one side of which is mixed. meaning: [B], columns that mean the same as a row's own or its
    partner's are left out of its denominator, but for these two. rows: only these are queries, against all (a process's share).
    """
    own = slice(0, len(image)) if rows is None else rows
    partner = partners(len(image), image.device)
    total = image.new_zeros(())
    for a, b in ((image, text), (text, image)):
        for start in range(own.start, own.stop, ROWS):
            part = slice(start, min(start + ROWS, own.stop))
            total = total + checkpoint(_rows, a, b, scale, share, meaning, partner, part, use_reentrant=False)
    return total / (2 * (own.stop - own.start))


def _rows(
    a: Tensor, b: Tensor, scale: Tensor | float, share: float, meaning: Tensor | None, partner: Tensor, part: slice
) -> Tensor:
    """The sum of the losses of some rows of a against all of b."""
    logits = scale * a[part] @ b.T
    own, other = torch.arange(part.start, part.stop, device=a.device)[:, None], partner[part, None]
    if meaning is not None:
        same = (meaning[part, None] == meaning) | (meaning[partner][part, None] == meaning)
        logits = logits.masked_fill(same.scatter(1, own, False).scatter(1, other, False), float("-inf"))
    log_p = logits.log_softmax(1)
    return -(share * log_p.gather(1, own) + (1 - share) * log_p.gather(1, other)).sum()


def sigmoid_sum(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    start: int | None,
    meaning: Tensor | None = None,
    text_meaning: Tensor | None = None,
) -> Tensor:
    """−Σ_ij log σ(z_ij (scale · x_i·y_j + bias)) of images [R, E] and texts [M, E]; z is 1 where j = start + i, else −1.

    start: None where no text belongs to any of the images. meaning [R], text_meaning [M]: pairs of different samples that mean the
    same are left out.
    """
    return sigmoid_of_logits(scale * image @ text.T + bias, start, meaning, text_meaning)


def sigmoid_of_logits(
    logits: Tensor, start: int | None, meaning: Tensor | None = None, text_meaning: Tensor | None = None
) -> Tensor:
    """``sigmoid_sum`` of logits [R, M] from any similarity."""
    own = torch.zeros_like(logits, dtype=torch.bool)
    if start is not None:
        rows = torch.arange(len(logits), device=logits.device)
        own[rows, rows + start] = True
    terms = -F.logsigmoid(torch.where(own, logits, -logits))
    if meaning is not None and text_meaning is not None:
        terms = terms.masked_fill((meaning[:, None] == text_meaning[None, :]) & ~own, 0.0)
    return terms.sum()


def sigmoid_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    meaning: Tensor | None = None,
    negatives: Tensor | None = None,
    rows: slice | None = None,
) -> Tensor:
    """Pairwise sigmoid loss, −1/B Σ_ij log σ(z_ij (scale · x_i·y_j + bias)), z = 1 on the diagonal, else −1 (SigLIP, Zhai et al.
    2023, eq. 1).
    """
    own = slice(0, len(image)) if rows is None else rows
    add_up = _sigmoid_sum(len(image[own]) * len(text))
    total = add_up(image[own], text, scale, bias, own.start, None if meaning is None else meaning[own], meaning)
    if negatives is not None:
        total = total + add_up(image[own], negatives, scale, bias, None)
    return total / (own.stop - own.start)


def _sigmoid_sum(entries: int) -> Callable[..., Tensor]:
    return tiled_sigmoid_sum if entries >= TILED_FROM else sigmoid_sum


def negatives_of(p: Pass) -> Tensor | None:
    """Embeddings [M, E] of the batch's hard negatives; None if it has no hard negatives."""
    result = p["negatives.embedding"] if p.has("negatives.embedding") else None
    return result if result is not None and len(result) else None


def meanings(p: Pass, false_negatives: Literal["mask", "keep"]) -> Tensor | None:
    """What the captions mean, [B], for a loss that leaves captions of equal meaning out of each other's negatives; None if it
    keeps them (``keep``), or if the source does not say.
    """
    return p[TEXT].meaning if false_negatives == "mask" else None


class InfoNCE(Scaled):
    """``info_nce`` with CLIP's learned scale: starts at 1/0.07, never above 100.

    hard_negatives: a wrong version of each caption as extra columns.
    false_negatives: ``mask`` leaves captions that mean the same out of each other's denominators; ``keep`` counts them as
    negatives, as the published losses do.
    momentum: the name of an averaged teacher, whose embeddings are then the keys (``momentum_info_nce``; ALBEF, BLIP). soft: the
    share α of the targets that are this teacher's similarities, which grows from 0 over the first ``ramp`` samples. queue: this
    many of the teacher's embeddings of earlier batches, a side, are further keys.
    mixup: alpha of the Beta distribution of λ (``models.mixup``; 0.1 in ZeroVL); 0: nothing is mixed.
    group: with several processes, how many of them compare their samples with each other (``Objective.group``); 0: all.
    """

    couples: tuple[str, ...] = ("image.embedding", "text.embedding")
    needs = ("text",)
    seen: Tensor

    def __init__(
        self,
        model: VLM,
        *,
        temperature: float = 0.07,
        max_scale: float = 100.0,
        hard_negatives: bool = False,
        false_negatives: Literal["mask", "keep"] = "mask",
        momentum: str = "",
        soft: Annotated[float, Field(ge=0, le=1)] = 0.0,
        ramp: Annotated[int, Field(ge=0)] = 0,
        queue: Annotated[int, Field(ge=0)] = 0,
        mixup: Annotated[float, Field(ge=0)] = 0.0,
        group: Annotated[int, Field(ge=0)] = 0,
    ):
        super().__init__(model, temperature=temperature, max_scale=max_scale)
        self.group = group
        self.mixer = Mixer(model, mixup) if mixup else None
        if self.mixer is not None:
            if hard_negatives:
                raise DiptychError("objective info_nce: mixup mixes captions, so none has hard_negatives of its own; remove one")
            self.couples, self.helpers, self.borrows = ("mixed.embedding", "text.mixed_embedding"), (self.mixer,), True
        self.hard_negatives = hard_negatives
        self.false_negatives: Literal["mask", "keep"] = false_negatives
        self.momentum, self.soft, self.ramp = momentum, soft, ramp
        self.queue: FeatureQueue | None = None
        self._new: tuple[Tensor, Tensor, Tensor | None, int] | None = None  # of the step that is being taken
        if hard_negatives:
            self.couples = (*self.couples, "negatives.embedding")
        if ramp and not soft and momentum:
            raise DiptychError("objective info_nce: ramp is how soft targets grow, and soft is 0; set soft, say to 0.4, or ramp: 0")
        if momentum:
            if group:
                raise DiptychError(
                    "objective info_nce: with group, the processes would hold different queues and counts of samples; remove "
                    "it, or `momentum`"
                )
            if mixup:
                raise DiptychError("objective info_nce: mixup has no momentum keys; remove it, or `momentum`")
            if hard_negatives:
                raise DiptychError("objective info_nce: hard_negatives have no momentum keys; remove them, or `momentum`")
            self.couples = (*self.couples, f"{momentum}:image.embedding", f"{momentum}:text.embedding")
            self.register_buffer("seen", torch.zeros((), dtype=torch.long))  # samples, for the ramp
            self.queue = FeatureQueue(queue, model.embed_dim) if queue else None
        elif soft or ramp or queue:
            raise DiptychError("objective info_nce: soft, ramp and queue need a momentum copy; set momentum to a teacher's name")

    @property
    def alpha(self) -> float:
        """The share of the soft targets now."""
        return self.soft * (min(1.0, int(self.seen) / self.ramp) if self.ramp else 1.0)

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        if self.momentum:
            return self._with_copy(p)
        if self.mixer is not None:
            share, _ = self.mixer.draw()
            image, text = p["mixed.embedding"], p["text.mixed_embedding"]
            if share < 1:
                with torch.autocast(image.device.type, enabled=False):
                    return mixed_info_nce(image, text, self.scale, share, meanings(p, self.false_negatives), p.rows)
        else:
            image, text = p[IMAGE_EMBEDDING], p[TEXT_EMBEDDING]  # outside the float32 context: the towers keep their precision
        negatives = negatives_of(p) if self.hard_negatives else None
        tiled = p.size * (p.size if p.rows is None else p.rows.stop - p.rows.start) >= TILED_FROM
        loss = tiled_info_nce if tiled else info_nce
        with torch.autocast(image.device.type, enabled=False):
            return loss(image, text, self.scale, meanings(p, self.false_negatives), negatives, p.rows)

    def _with_copy(self, p: Pass) -> Tensor:
        """The loss with the momentum copy's embeddings as keys."""
        image, text, meaning = p[IMAGE_EMBEDDING], p[TEXT_EMBEDDING], meanings(p, self.false_negatives)
        keys = [p[f"{self.momentum}:{name}"].detach() for name in (IMAGE_EMBEDDING, TEXT_EMBEDDING)]
        if torch.is_grad_enabled():  # not in validation
            self._new = (keys[0], keys[1], meaning, p.size)
        key_meaning = meaning
        if self.queue is not None:
            *held, held_meaning = self.queue.entries()
            keys = [torch.cat([new, old]) for new, old in zip(keys, held, strict=True)]
            key_meaning = None if meaning is None else torch.cat([meaning, held_meaning])
        with torch.autocast(image.device.type, enabled=False):
            return momentum_info_nce(image, text, keys[0], keys[1], self.scale, self.alpha, meaning, key_meaning, p.rows)

    def after_step(self, total: Callable[..., list[float]]) -> None:
        """Limit the scale; put the step's momentum embeddings into the queue; draw anew what is mixed."""
        super().after_step(total)
        if self.mixer is not None:
            self.mixer.next()
        if self._new is not None:
            image, text, meaning, n = self._new
            if self.queue is not None:
                self.queue.push(image, text, meaning)
            self.seen += n
            self._new = None

    def metrics(self) -> dict[str, float]:
        """Numbers for the log, such as a temperature."""
        return {**super().metrics(), **({"soft": self.alpha} if self.soft else {})}


class Sigmoid(Objective):
    """``sigmoid_loss`` with learned scale and bias, from 10 and −10 as in the paper.

    exchange: between processes; ``gather``: each gets all embeddings; ``ring``: texts are passed around, and no process ever holds
    more than two processes' share (SigLIP, §3.3). false_negatives: as in ``InfoNCE``.
    """

    couples: tuple[str, ...] = ("image.embedding", "text.embedding")
    needs = ("text",)

    def __init__(
        self,
        model: VLM,
        *,
        scale: float = 10.0,
        bias: float = -10.0,
        hard_negatives: bool = False,
        false_negatives: Literal["mask", "keep"] = "mask",
        exchange: Literal["gather", "ring"] = "gather",
    ):
        super().__init__(model)
        self.false_negatives: Literal["mask", "keep"] = false_negatives
        self.logit_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.logit_bias = nn.Parameter(torch.tensor(bias))
        self.hard_negatives, self.gathers = hard_negatives, exchange == "gather"
        if hard_negatives:
            if not self.gathers:
                raise DiptychError("objective sigmoid: hard_negatives are not passed around the ring; set exchange: gather")
            self.couples = (*self.couples, "negatives.embedding")

    @property
    def scale(self) -> Tensor:
        """What similarities are multiplied by."""
        return self.logit_scale.exp()

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        if not self.gathers:
            return self._around(p)
        negatives = negatives_of(p) if self.hard_negatives else None
        image, text = p[IMAGE_EMBEDDING], p[TEXT_EMBEDDING]
        with torch.autocast(image.device.type, enabled=False):
            scale, meaning = self.logit_scale.exp(), meanings(p, self.false_negatives)
            return sigmoid_loss(image, text, scale, self.logit_bias, meaning, negatives, p.rows)

    def _around(self, p: Pass) -> Tensor:
        """The same from this process's images and the texts of one process at a time."""
        own = p.alone
        image, text, meaning = own[IMAGE_EMBEDDING], own[TEXT_EMBEDDING], meanings(own, self.false_negatives)
        add_up = _sigmoid_sum(len(image) ** 2)
        total = image.new_zeros(())
        with torch.autocast(image.device.type, enabled=False):
            for other, text_meaning, mine in p.around(text, meaning):
                start = 0 if mine else None
                total = total + add_up(image, other, self.logit_scale.exp(), self.logit_bias, start, meaning, text_meaning)
        return total / len(image)

    def metrics(self) -> dict[str, float]:
        """Numbers for the log, such as a temperature."""
        return {"scale": self.logit_scale.exp().item(), "bias": self.logit_bias.item()}
