"""Grounding losses of patches that propose boxes (GLIP, Li et al. 2022; DetCLIP, Yao et al. 2022).

Shapes: B images, N patches, n regions of all images, T tokens of a prompt, K concepts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from diptych.core.batch import Texts
from diptych.core.errors import DiptychError
from diptych.data.text import PAD
from diptych.models.regions.anchors import responsible
from diptych.models.regions.boxes import area, giou
from diptych.models.regions.weights import owners
from diptych.objectives.base import Objective
from diptych.objectives.regions.base import count_of, meaning_of

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM


def focal(logits: Tensor, target: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss (Lin et al. 2017, arXiv:1708.02002, equation 5), −α_t (1 − p_t)^γ log p_t for each entry, for targets 0
    and 1.
    """
    right = torch.where(target > 0, logits, -logits)  # log-odds of what is true
    balance = torch.where(target > 0, alpha, 1 - alpha)
    return balance * (1 - right.sigmoid()) ** gamma * -F.logsigmoid(right)


def prompts(phrases: Texts, owner: Tensor, size: int, longest: int) -> tuple[Texts, Tensor]:
    """One prompt an image, [BOS] phrase [EOS] phrase [EOS] …, of the phrases of ``owner`` in their order, and the phrase of each
    token (−1 for [BOS] and padding): ``Texts`` and int64 of [size, T]. Phrases that do not fit into ``longest`` tokens are left
    out.

    phrases: n texts; owner: [n], the image of each; a row with −1 is left out.
    """
    rows: list[list[int]] = [[] for _ in range(size)]
    of: list[list[int]] = [[] for _ in range(size)]
    lengths, image = phrases.mask.sum(1).tolist(), owner.tolist()
    ids = phrases.ids.tolist()
    bos = ids[0][0] if ids else PAD
    for k, at in enumerate(image):
        words = ids[k][1 : lengths[k]]
        if at >= 0 and 1 + len(rows[at]) + len(words) <= longest:
            rows[at] += words
            of[at] += [k] * len(words)
    length = 1 + max(map(len, rows), default=0)
    made = torch.full((size, length), PAD)
    which = torch.full((size, length), -1)
    for i, (row, phrase) in enumerate(zip(rows, of, strict=True)):
        made[i, : 1 + len(row)] = torch.tensor([bos, *row])
        which[i, 1 : 1 + len(row)] = torch.tensor(phrase, dtype=torch.long)
    mask = torch.arange(length) < torch.tensor([1 + len(row) for row in rows])[:, None]
    device = phrases.ids.device
    return Texts(made.to(device), mask.to(device)), which.to(device)


def box_loss(proposed: Tensor, boxes: Tensor, owner: Tensor, here: Tensor) -> Tensor:
    """The sum of 1 − GIoU over patches that have to propose a box; a patch that answers for several takes the smallest.

    proposed: [B, N, 4]; boxes: [n, 4]; owner: [n]; here: [n, N] from ``responsible``.
    """
    B, N = proposed.shape[:2]
    size = torch.where(here, area(boxes)[:, None], float("inf"))  # [n, N]
    least = boxes.new_full((B, N), float("inf")).scatter_reduce(0, owner[:, None].expand(-1, N), size, "amin")
    takes = here & (size <= least[owner])
    region, patch = takes.nonzero(as_tuple=True)
    return (1 - giou(proposed[owner[region], patch], boxes[region])).sum()


class _Grounding(Objective):
    """Base class: which patches answer for which regions; the number of those pairs is what losses are divided by."""

    parts = ("vision", "grounding")

    def __init__(self, model: VLM, encoding: str, kind: str, boxes: float, radius: float):
        super().__init__(model)
        if not model.graph.gives(encoding):
            raise DiptychError(
                f"this objective reads '{encoding}', which parts.grounding does not give; set parts.grounding.kind: {kind}"
            )
        self.weight, self.radius, self.grid = boxes, radius, int(model.part("grounding").grid)

    def here(self, p: Pass) -> Tensor:
        """bool [n, N]"""
        return responsible(p["regions"].boxes, self.grid, self.radius)

    def terms(self, p: Pass) -> int:
        """Pairs of a region and a patch that answers for it."""
        return int(self.here(p).sum()) if count_of(p) else 0


class Grounding(_Grounding):
    """GLIP's losses. The phrases of an image, in a random order and with ``negatives`` phrases of other images, are its prompt;
    each word is a target of the patches that answer for its phrase: sigmoid focal loss, plus ``boxes`` · (1 − GIoU) of their boxes
    (2 in GLIP), over the number of such patches. The authors' centre-ness is left out. radius: of ``responsible``.
    """

    needs = ("image.tokens", "regions")

    def __init__(
        self,
        model: VLM,
        *,
        boxes: Annotated[float, Field(ge=0)] = 2.0,
        negatives: Annotated[int, Field(ge=0)] = 1,
        radius: Annotated[float, Field(gt=0)] = 1.5,
    ):
        super().__init__(model, "text.anchor_logits", "glip", boxes, radius)
        self.negatives, self.longest = negatives, int(model.tokenizer.max_length)

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        regions = p["regions"]
        n, device = len(regions), regions.boxes.device
        owner, here = owners(regions.owner, n, device), self.here(p)
        rows, image = self._drawn(regions.phrases, owner, p.size)
        text, which = prompts(regions.phrases[rows], image, p.size, self.longest)
        region = torch.where(which >= 0, rows[which], 0)  # [B, T], of which region's phrase each token is
        q = p.view(text=text)
        logits, proposed = q["text.anchor_logits"].float(), q["text.anchor_boxes"]
        ours = (which >= 0) & (owner[region] == torch.arange(p.size, device=device)[:, None])
        target = here[region].transpose(1, 2) & ours[:, None]  # [B, N, T]
        target = target | self._alike(regions.phrases, owner, here, region, which >= 0)
        losses = focal(logits, target) * (which >= 0)[:, None]
        return (losses.sum() + self.weight * box_loss(proposed, regions.boxes, owner, here)) / here.sum()

    def _drawn(self, phrases: Texts, owner: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Phrases in the order in which they stand in prompts, and the image of each prompt: own ones, then wrong ones."""
        n, device = len(owner), owner.device
        own = torch.randperm(n, device=device)
        if not self.negatives or size < 2:
            return own, owner[own]
        image = torch.arange(size, device=device).repeat_interleave(self.negatives)
        other = torch.randint(n, (len(image),), device=device)
        image = torch.where(owner[other] == image, -1, image)  # an own one is there already
        rows, images = torch.cat([own, other]), torch.cat([owner[own], image])
        mixed = torch.randperm(len(rows), device=device)
        return rows[mixed], images[mixed]

    def _alike(self, phrases: Texts, owner: Tensor, here: Tensor, region: Tensor, real: Tensor) -> Tensor:
        """Targets of phrases of other images that mean the same as one of the image's own: bool [B, N, T]."""
        meaning = meaning_of(phrases)
        B, N = len(region), here.shape[1]
        same = (meaning[region][:, :, None] == meaning) & (
            owner == torch.arange(B, device=owner.device)[:, None, None]
        )  # [B, T, n]
        return ((same & real[..., None]).float() @ here.float() > 0).transpose(1, 2).reshape(B, N, -1)


class AnchorConcepts(_Grounding):
    """DetCLIP's losses: the patches that answer for a region match its phrase, and no other phrase of the batch; texts are read
    alone, in parallel. Sigmoid focal loss plus ``boxes`` · (1 − GIoU). concepts: also no concept of the source (field ``concepts``,
    the paper's dictionary) whose words are not in a phrase of the image. radius: of ``responsible``.
    """

    couples: tuple[str, ...] = ("image.anchor_embedding", "image.anchor_boxes", "regions.phrases.embedding")
    needs: tuple[str, ...] = ("regions",)

    def __init__(
        self,
        model: VLM,
        *,
        boxes: Annotated[float, Field(ge=0)] = 2.0,
        concepts: bool = False,
        radius: Annotated[float, Field(gt=0)] = 1.5,
    ):
        super().__init__(model, "image.anchor_embedding", "anchors", boxes, radius)
        self.concepts = concepts
        self._head = [model.part("grounding")]  # in a list: shared, not owned
        if concepts:
            self.needs = ("regions", "concepts", "concepts.classes.embedding")

    borrows = True

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar; 0 if there are no regions."""
        anchors, proposed, text = (p[name] for name in self.couples)
        if not count_of(p):
            nothing: Tensor = (anchors.sum() + text.sum()) * 0
            return nothing
        regions = p["regions"]
        owner, here = owners(regions.owner, len(regions), anchors.device), self.here(p)
        meaning = meaning_of(regions.phrases)
        rows = p.rows or slice(0, p.size)
        image = torch.arange(rows.start, rows.stop, device=owner.device)
        mine = (owner >= rows.start) & (owner < rows.stop)
        with torch.autocast(anchors.device.type, enabled=False):
            logits = self._head[0].logits(torch.einsum("bne,ke->bnk", anchors[rows].float(), text.float()))
            same = (meaning[:, None] == meaning[None]).float()  # [n, K]: a phrase of another image that means the same is right too
            of_image = (owner == image[:, None]).float()  # [R, n]
            target = torch.einsum("bn,np,nk->bpk", of_image, here.float(), same) > 0
            loss = focal(logits, target).sum()
            if self.concepts:
                loss = loss + self._absent(p, anchors[rows].float())
            loss = loss + self.weight * box_loss(proposed[rows], regions.boxes[mine], owner[mine] - rows.start, here[mine])
        result: Tensor = loss / here.sum() * (p.size / (rows.stop - rows.start))
        return result

    def _absent(self, p: Pass, anchors: Tensor) -> Tensor:
        """The loss of concepts that no phrase of an image names; anchors [R, N, E] of this process's own images."""
        own = p.alone
        regions, device = own["regions"], anchors.device
        named = named_in(own["concepts"].classes.strings, regions.phrases.strings, device)  # [C, n]
        image = torch.arange(len(anchors), device=device)[:, None]
        owner = owners(regions.owner, len(regions), device)
        absent = ((owner == image).float() @ named.float().T) == 0  # [R, C]
        logits = self._head[0].logits(torch.einsum("bne,ke->bnk", anchors, p["concepts.classes.embedding"].float()))
        return (focal(logits, torch.zeros_like(logits)) * absent[:, None]).sum()


def named_in(concepts: Sequence[str], phrases: Sequence[str], device: torch.device) -> Tensor:
    """Whether a phrase has a word that begins as the last word of a concept does, without its last letter: a rule that finds
    plurals, and rather too much than too little. bool [C, n]
    """
    starts = [c.lower().split()[-1] for c in concepts]
    starts = [s[:-1] if len(s) > 3 else s for s in starts]
    words = [phrase.lower().split() for phrase in phrases]
    return torch.tensor([[any(w.startswith(s) for w in row) for row in words] for s in starts], device=device)
