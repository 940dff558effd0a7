"""X-CLIP (Ma et al., ACM MM 2022, arXiv:2207.07285; another model than the class of that name in transformers): a clip and a
caption are compared at four grains, and attention over the similarities themselves sums them up (AOSM, §3.4).

Shapes: M clips, K texts, F frames, T tokens, E embedding.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.core.batch import Tokens
from diptych.core.encodings import TEXT
from diptych.objectives.base import Scaled
from diptych.objectives.contrastive import meanings, same_meaning
from diptych.objectives.filip import late_loss

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM


def attended(similarity: Tensor, mask: Tensor, mix: Tensor, temperature: float) -> Tensor:
    """Σ_j (softmax(s / τ) · mix)_j s_j over the last dimension (eq. 8–13), of what ``mask`` says is real: [..., n] → [...].

    mix: [n, n], learned, the identity at the start. Padding has weight 0 and takes none; the published code lets it take part.
    """
    weights = (similarity / temperature).masked_fill(~mask, -math.inf).softmax(-1)
    mixed = torch.where(mask, weights @ mix, 0.0)
    return (mixed * similarity.masked_fill(~mask, 0.0)).sum(-1)


class MultiGrained(Scaled):
    """Symmetric InfoNCE over the mean of four similarities: clip and sentence, clip and words, frames and sentence, frames
    and words.

    The matrices that mix the grains are learned, and are the identity at the start. temperature_of_attention: τ of ``attended``.
    false_negatives: as in ``InfoNCE``. The recipe's score ``multi_grained`` is the mean of the four.
    """

    couples: tuple[str, ...] = ("video.frame_embedding", "text.embedding", "text.token_embedding")
    needs = ("text",)
    trains = ("video.embedding",)  # the pooled frames
    scores_as = "multi_grained"
    scores_all = True

    def __init__(
        self,
        model: VLM,
        *,
        temperature: float = 0.07,
        max_scale: float = 100.0,
        temperature_of_attention: Annotated[float, Field(gt=0)] = 0.01,
        false_negatives: Literal["mask", "keep"] = "mask",
    ):
        super().__init__(model, temperature=temperature, max_scale=max_scale)
        self.false_negatives: Literal["mask", "keep"] = false_negatives
        self.tau = temperature_of_attention
        frames, words, width = int(model.part("time").frames), int(model.tokenizer.max_length), model.embed_dim
        names = {"clip_sentence": width, "token": width, "clip_words": words, "frames_sentence": frames}
        names |= {"words": words, "frames": frames, "words_again": words, "frames_again": frames}
        self.mix = nn.ParameterDict({name: nn.Parameter(torch.eye(n)) for name, n in names.items()})

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        scores = self.all_scores(p)
        own = p.rows or slice(0, len(scores))
        same = same_meaning(meanings(p, self.false_negatives), p.rows)
        return late_loss(scores[own] * self.scale, scores.T[own] * self.scale, own.start, same)

    def all_scores(self, p: Pass) -> Tensor:
        """The mean of the four similarities of every clip with every text, [M, K]."""
        video: Tokens = p["video.frame_embedding"]
        sentence, words = p["text.embedding"], p["text.token_embedding"]  # before: the towers compute in the run's precision
        assert video.mask is not None
        with torch.autocast(video.tokens.device.type, enabled=False):
            return self._scores(video, video.mask, sentence, words, p[TEXT].mask)

    def _scores(self, video: Tokens, frames: Tensor, sentence: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        mixes, clip = self._mixes(words.shape[1]), video.pooled
        whole = clip @ mixes["clip_sentence"].T @ sentence.T
        of_words = torch.einsum("me,kte->mkt", clip, words)
        of_frames = torch.einsum("mfe,ke->mkf", video.tokens, sentence)
        by_words = attended(of_words, mask[None], mixes["clip_words"], self.tau)
        by_frames = attended(of_frames, frames[:, None], mixes["frames_sentence"], self.tau)
        fine = torch.einsum("mfe,ed,ktd->mkft", video.tokens, mixes["token"].T, words)
        # Words first, then frames; and frames first, then words.
        by_frame = attended(fine, mask[None, :, None], mixes["words"], self.tau)  # [M, K, F]
        by_word = attended(fine.transpose(2, 3), frames[:, None, None], mixes["frames"], self.tau)  # [M, K, T]
        last = attended(by_frame, frames[:, None], mixes["frames_again"], self.tau)
        last = (last + attended(by_word, mask[None], mixes["words_again"], self.tau)) / 2
        return (whole + by_words + by_frames + last) / 4

    def frame_weights(self, p: Pass) -> Tensor:
        """How much each frame of a clip counts for a text, [M, K, F]: the softmax over frames of their similarities with the
        sentence (eq. 11), before the learned mixing; 0 for padding.
        """
        video: Tokens = p["video.frame_embedding"]
        assert video.mask is not None
        with torch.autocast(video.tokens.device.type, enabled=False):
            similarity = torch.einsum("mfe,ke->mkf", video.tokens, p["text.embedding"]) / self.tau
            return similarity.masked_fill(~video.mask[:, None], -math.inf).softmax(-1)

    def pair_scores(self, p: Pass, images: Tensor, texts: Tensor) -> Tensor:
        """How well text ``texts[k]`` fits clip ``images[k]``, for index tensors [P] into the batch: [P]."""
        return self.all_scores(p)[images, texts]

    def _mixes(self, length: int) -> dict[str, Tensor]:
        """The matrices, those of words for this many tokens."""
        cut = {"clip_words", "words", "words_again"}
        return {name: mix[:length, :length] if name in cut else mix for name, mix in self.mix.items()}
