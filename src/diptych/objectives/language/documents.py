"""Documents of texts and images in any order through a language model that reads images.

Shapes: B documents, T positions, n learned tokens, P parts of a document, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from diptych.core.batch import Documents
from diptych.core.graph import provides
from diptych.objectives.base import Objective
from diptych.objectives.language.alignment import fitted_similarity, kernel_similarity

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM


@dataclass
class LaidOut:
    """Documents as rows of tokens."""

    ids: Tensor  # [B, T] int64; below 0 where an image token goes
    targets: Tensor  # [B, T] int64, what is to be predicted at ``learned``
    learned: Tensor  # [B, T] bool
    positions: Tensor  # [B, T] int64
    last: Tensor  # [B] int64: the place of the last [EOS]


def texts_behind(kinds: list[int]) -> list[int]:
    """The parts of a document (0 a text, 1 an image) in the order in which each text follows the image that stood behind it: places
    in ``kinds``.
    """
    order, at = [], 0
    while at < len(kinds):
        if kinds[at] == 0 and at + 1 < len(kinds) and kinds[at + 1] == 1:
            order += [at + 1, at]
            at += 2
        else:
            order.append(at)
            at += 1
    return order


def laid_out(documents: Documents, size: int, lm: Any, tokens: int, swapped: list[bool]) -> LaidOut:
    """A row for each of ``size`` documents: [BOS], then words and images as few-shot examples are read, and [EOS] at the end. After
    a text that an image or the end follows, [EOS] is to be predicted, though only the last one is there to be read.

    lm: the language model's part; tokens: of an image; swapped: documents in which each text is read behind its image.
    """
    tokenizer, image = lm.lm.tokenizer, lm.place(tokens)
    parts: list[list[tuple[int, list[int]]]] = [[] for _ in range(size)]
    texts = documents.texts
    words = iter([] if texts is None else [row[m][1:-1].tolist() for row, m in zip(texts.ids.cpu(), texts.mask.cpu(), strict=True)])
    assert documents.owner is not None
    for kind, owner in zip(documents.kind.tolist(), documents.owner.tolist(), strict=True):
        parts[owner].append((kind, image if kind else next(words)))
    rows, targets, learns = [], [], []
    for own, swap in zip(parts, swapped, strict=True):
        own = [own[i] for i in texts_behind([k for k, _ in own])] if swap else own
        begins = not lm.gated or not own or own[0][0] == 0
        ids = [tokenizer.bos] if begins else []
        goal, mark = list(ids), [False] * len(ids)
        for place, (kind, piece) in enumerate(own):
            if kind == 1 and place and own[place - 1][0] == 0:
                goal.append(tokenizer.eos)
                mark.append(True)
                goal, mark = goal + piece[1:], mark + [False] * (len(piece) - 1)
            else:
                goal, mark = goal + piece, mark + [kind == 0] * len(piece)
            ids = ids + piece
        ends = bool(own) and own[-1][0] == 0
        rows.append([*ids, tokenizer.eos])
        targets.append([*goal, tokenizer.eos])
        learns.append([*mark, ends])
    length = max(map(len, rows))
    device = documents.kind.device

    def tensor(values: list[list[int]], fill: int) -> Tensor:
        """Rows of numbers, filled up at the end."""
        return torch.tensor([row + [fill] * (length - len(row)) for row in values], device=device)

    last = torch.tensor([len(row) - 1 for row in rows], device=device)
    positions = torch.arange(length, device=device).expand(size, -1)
    pad = tokenizer.pad
    return LaidOut(tensor(rows, pad), tensor(targets, pad), tensor([list(map(int, m)) for m in learns], 0).bool(), positions, last)


class DocumentWords(Objective):
    """Next-token loss of the texts of documents, given all texts and images before; the mean over their tokens. Captioned images
    are documents of one image and one text.

    next: the share of documents, drawn anew each time, in which each text is read behind the image that stands behind it, as if it
    described that one (Flamingo, Alayrac et al. 2022, appendix A.3.2: 0.5); all others as they are.
    """

    parts = ("lm", "connector")
    needs = ("document", "document.images.prefix?")
    predicts_text = True

    def __init__(self, model: VLM, *, next: Annotated[float, Field(ge=0, le=1)] = 0.5):
        super().__init__(model)
        self.next = next
        self._model: list[Any] = [model]  # in a list: it is not a part of the objective

    @property
    def lm(self) -> Any:
        """The language model's part."""
        return self._model[0].part("lm")

    def rows(self, documents: Documents, size: int) -> LaidOut:
        """The documents as rows of tokens, with a new draw."""
        swapped = (torch.rand(size) < self.next).tolist() if 0 < self.next < 1 else [self.next == 1] * size
        return laid_out(documents, size, self.lm, self._model[0].part("connector").tokens, swapped)

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        documents: Documents = p["document"]
        rows = self.rows(documents, p.size)
        shown = None if documents.images is None else p["document.images.prefix"]
        logits = self.lm.answer_logits(rows.ids, shown, rows.positions, rows.learned)
        return F.cross_entropy(logits.float(), rows.targets[:, 1:][rows.learned[:, 1:]])

    def terms(self, p: Pass) -> int:
        """How many terms ``forward`` is the mean of, so that pieces of a batch are weighed as the whole would be; 0: nothing to
        do.
        """
        return int(self.rows(p["document"], p.size).learned[:, 1:].sum())


class DocumentSimilarity(Objective):
    """States of documents at their end become as alike as their parts are: what the cosine of two states says of the other
    documents of a batch is fitted to what an alignment of their texts and images says (after Sugar, Chow et al. 2024,
    arXiv:2411.00304, §3.2; the formulas are in ``alignment``).

    most: parts that are compared, the first ones of a document. sigma: how fast two parts become unlike. target: temperature of the
    similarities of parts. temperature: of the states'.
    """

    parts = ("lm", "connector", "vision")
    couples = ("document.state", "document.part_vectors")

    def __init__(
        self,
        model: VLM,
        *,
        most: Annotated[int, Field(ge=1)] = 10,
        sigma: Annotated[float, Field(gt=0)] = 0.5,
        target: Annotated[float, Field(gt=0)] = 0.1,
        temperature: Annotated[float, Field(gt=0)] = 0.1,
    ):
        super().__init__(model)
        self.most, self.sigma, self.target, self.temperature = most, sigma, target, temperature
        self._model: list[Any] = [model]

    @provides("document.state", "document", "document.images.prefix?")
    def state(self, documents: Documents, shown: Tensor | None) -> Tensor:
        """The last hidden state at each document's end, [B, D]."""
        lm, tokens = self._model[0].part("lm"), self._model[0].part("connector").tokens
        assert documents.owner is not None
        size = int(documents.owner.max()) + 1
        rows = laid_out(documents, size, lm, tokens, [False] * size)
        words, seen = lm.words_and_images(rows.ids, shown), lm._last_seen(rows.ids, shown, rows.positions)
        hidden: Tensor = lm.lm.documents(words, rows.positions, seen)
        return hidden[torch.arange(size, device=hidden.device), rows.last].float()

    @provides("document.part_vectors", "document", "document.images.tokens?")
    def part_vectors(self, documents: Documents, images: Any) -> Tensor:
        """A unit vector for each part, [B, most, W + D] without gradients: the tower's pooled vector of an image, or the mean word
        vector of a text; zeros where there is no part.
        """
        lm = self._model[0].part("lm")
        assert documents.owner is not None
        width, size = self._model[0].part("vision").width, int(documents.owner.max()) + 1
        out = torch.zeros(size, self.most, width + lm.width, device=documents.kind.device)
        with torch.no_grad():
            counts, at = [0] * size, [0, 0]
            for kind, owner in zip(documents.kind.tolist(), documents.owner.tolist(), strict=True):
                if counts[owner] < self.most:
                    out[owner, counts[owner]] = self._vector(documents, images, kind, at[kind], width)
                counts[owner] += 1
                at[kind] += 1
        return out

    def _vector(self, documents: Documents, images: Any, kind: int, at: int, width: int) -> Tensor:
        """The vector of one part: the ``at``-th image or text of the batch."""
        lm = self._model[0].part("lm").lm
        if kind == 1:
            own = F.normalize(images.pooled[at].float(), dim=0)
            return F.pad(own, (0, lm.width))
        assert documents.texts is not None
        ids = documents.texts.ids[at][documents.texts.mask[at]][1:-1]
        words = lm.embed(ids[None]).float()[0] if len(ids) else torch.zeros(1, lm.width, device=ids.device)
        return F.pad(F.normalize(words.mean(0), dim=0), (width, 0))

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar; 0 of a single document."""
        states: Tensor = p["document.state"]
        vectors: Tensor = p["document.part_vectors"]
        if len(states) < 2:
            return states.sum() * 0
        alike = kernel_similarity(vectors, self.sigma)  # of constants
        return fitted_similarity(states, alike, self.target, self.temperature, p.rows)
