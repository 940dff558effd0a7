"""VideoBERT (Sun et al. 2019, arXiv:1904.01766): a codebook of short clips, and masked words and codes in one sequence.

Shapes: B clips, S short clips, T tokens, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diptych.core.batch import Tokens
from diptych.core.encodings import TEXT
from diptych.core.errors import DiptychError
from diptych.data.text import PAD
from diptych.objectives.base import Objective
from diptych.objectives.maskvlm import WordHead, hidden_counts, mask_words, words_of

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM


class FitCodebook(Objective):
    """Gives the features of training clips to the codebook of ``parts.time: {kind: codes}``, which is fitted when it has enough.
    Nothing learns by gradient from it: its stage trains neither vision nor time, but perhaps the text, by another objective. The
    loss is the mean squared distance of the features to their centres; before these are fitted, to their mean.
    """

    couples = ("video.features",)  # every process keeps the same features
    parts = ("time",)

    def __init__(self, model: VLM):
        super().__init__(model)
        time = model.part("time")
        if not hasattr(time, "codebook"):
            raise DiptychError("objective codebook: there is no codebook; set parts.time.kind: codes")
        self._time = [time]  # in a list: shared, not owned

    def forward(self, p: Pass) -> Tensor:
        """The mean squared distance of a batch, a scalar."""
        features: Tokens = p["video.features"]
        assert features.mask is not None
        codebook, new = self._time[0].codebook, features.tokens.detach()[features.mask]
        if torch.is_grad_enabled():  # not in validation
            codebook.collect(new)
        # A leaf of its own, so that a step may have no other loss.
        loss: Tensor = codebook.error(new).float().requires_grad_(torch.is_grad_enabled())
        return loss

    def metrics(self) -> dict[str, float]:
        """The share of the features that are there."""
        codebook = self._time[0].codebook
        return {"collected": int(codebook.count) / codebook.samples}


class MaskedWordsAndCodes(Objective):
    """Hidden words and hidden codes of a pair at once, from the rest of both. The loss is the mean over all of them.

    share: of the words, and of the codes, that are hidden, at least one of each; they are replaced as in BERT.
    """

    parts = ("text", "fusion")
    needs = ("video.codes", "text")
    predicts_text = True
    borrows = True  # the text tower's word vectors

    def __init__(self, model: VLM, *, share: Annotated[float, Field(gt=0, lt=1)] = 0.15):
        super().__init__(model)
        fusion = model.part("fusion")
        if not hasattr(fusion, "read_codes"):
            raise DiptychError("objective masked_words_and_codes: reads codes; set parts.fusion.kind: words_and_codes")
        self.share = share
        self.head = WordHead(model)
        width = fusion.width
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(fusion.codes.num_embeddings))
        self._fusion = [fusion]  # in a list: shared, not owned

    def code_logits(self, x: Tensor) -> Tensor:
        """[..., D] → one number for each code, by its own vector."""
        return F.linear(self.transform(x) * x.shape[-1] ** -0.5, self._fusion[0].codes.weight, self.bias)

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        text, codes, fusion = p[TEXT], p["video.codes"], self._fusion[0]
        ids, words = mask_words(text.ids, text.mask, self.share, "bert", len(self.head.bias))
        changed, where = mask_words(codes, codes != PAD, self.share, "bert", len(self.bias))
        read, seen = fusion.read(ids, text.mask, fusion.read_codes(changed))
        total = F.cross_entropy(self.head(read.tokens[words]).float(), text.ids[words], reduction="sum")
        total = total + F.cross_entropy(self.code_logits(seen.tokens[where]).float(), codes[where], reduction="sum")
        return total / (words.sum() + where.sum())

    def terms(self, p: Pass) -> int:
        """The number of hidden words and codes."""
        text, codes = p[TEXT], p["video.codes"]
        both = words_of(text.ids, text.mask), words_of(codes, codes != PAD)
        return int(sum(hidden_counts(words, self.share).sum() for words in both))
