"""MERLOT (Zellers et al. 2021, arXiv:2106.02636, §3.2): frames and the texts next to them, in three tasks. Checked against the
authors' code.

Shapes: B clips, K pieces of one frame each, T words of the whole story, N tokens of a frame, D width, E embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diptych.core.batch import Segments, Tokens
from diptych.core.errors import DiptychError
from diptych.core.graph import provides
from diptych.data.text import BOS
from diptych.models.layers.received import attention_received
from diptych.objectives.base import Objective
from diptych.objectives.contrastive import info_nce
from diptych.objectives.maskvlm import WordHead, bert_noise, hidden_counts, words_of

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM

SPANS = (0.625, 0.25, 0.125)  # how often a span goes 0, 1 or 2 words further, to each side
EASY = 0.01  # the weight of a pair in the order task whose places are both known


def story_of(segments: Segments) -> tuple[Tensor, Tensor]:
    """The words of whole clips, ids and mask [B, T]."""
    assert segments.story is not None
    return segments.story.ids, segments.story.mask


def at_starts(x: Tensor, ids: Tensor, pieces: int) -> Tensor:
    """The vectors [B, T, …] at the first token of each piece of a story, which is [BOS]: [B, K, …]."""
    starts = (ids == BOS).nonzero()[:, 1].view(len(ids), pieces)
    return x[torch.arange(len(ids), device=ids.device)[:, None], starts]


class FrameContrast(Objective):
    """Symmetric InfoNCE of each frame and its text, as the text tower reads it among the other texts of the clip: the vector at the
    first token of its piece. Negatives are all other pieces of the batch, of the same clip too; not those with the same text.
    temperature: fixed. The weight in the paper is 0.25.
    """

    couples = ("segments.frames.embedding", "segments.story.token_embedding")
    needs = ("segments",)
    trains = ("video.embedding", "text.embedding")  # by the same maps

    def __init__(self, model: VLM, *, temperature: Annotated[float, Field(gt=0)] = 0.05):
        super().__init__(model)
        self.temperature = temperature

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        segments: Segments = p["segments"]
        frames, words = p["segments.frames.embedding"], p["segments.story.token_embedding"]
        assert segments.texts is not None
        K = segments.pieces
        if len(frames) != len(words) * K:
            raise DiptychError("objective frame_contrast: a piece is one frame here; set data.fields.segments.frames: 1")
        rows = None if p.rows is None else slice(p.rows.start * K, p.rows.stop * K)
        with torch.autocast(frames.device.type, enabled=False):
            texts = at_starts(words, story_of(segments)[0], K).flatten(0, 1)
            return info_nce(frames, texts, 1 / self.temperature, segments.texts.meaning, None, rows)


def attended_weights(words: Tensor, attended: Tensor, top: float, chance: float) -> Tensor:
    """How likely each word is drawn, relative to the others: [B, T], 0 where there is no word. The ``top`` share of a text's words,
    those that receive most attention, together have ``chance``, and the others the rest. words [B, T] bool; attended [B, T].
    """
    count = (words.sum(1) * top).long().clamp(min=1)
    rank = attended.masked_fill(~words, -1.0).argsort(1, descending=True).argsort(1)
    weight = chance * (1 - top) / (top * (1 - chance))
    return torch.where(rank < count[:, None], weight, 1.0) * words


def spans(order: Tensor, counts: Tensor, lower: Tensor, upper: Tensor, words: Tensor, weights: Tensor) -> Tensor:
    """Which words are hidden, [B, T] bool, as many as ``counts`` [B] says.

    order [B, T]: when each word is drawn, from 0; those drawn before ``counts`` begin a span, from ``lower`` words before them to
    ``upper`` words after. Words of spans that are drawn earlier come first; of the same span, those of larger weight. In the
    authors' code a word in several spans belongs to the one drawn last.
    """
    T = order.shape[1]
    place = torch.arange(T, device=order.device)
    begins = (order < counts[:, None]) & words
    covers = (place >= place[:, None] - lower[..., None]) & (place <= place[:, None] + upper[..., None])  # [B, begin, word]
    first = torch.where(covers & begins[..., None], order[..., None], T).amin(1)  # [B, word]
    priority = (T - first) + 0.5 * weights / weights.amax(1, keepdim=True).clamp(min=1e-9)
    rank = torch.argsort(priority.masked_fill(~words, -1.0), dim=1, descending=True, stable=True).argsort(1)
    return (rank < counts[:, None]) & words


class Hidden(NamedTuple):
    """A story some words of which are hidden, read together with the frames."""

    words: Tensor  # [B, T, D]
    frames: Tensor  # [B, K, D], at the first token of each frame
    where: Tensor  # [B, T] bool, the hidden words


class MaskedSpeech(Objective):
    """Masked words of a clip's texts, from all of its frames and the other words. It provides ``segments.hidden``, what the shared
    transformer makes of them, which ``frame_order`` reads too.

    share: of the words hidden. top, chance: half of the draws (``chance``) are among the fifth of the words (``top``) that receive
    most attention in the text tower. A draw begins a span (``spans``). Hidden words are replaced as in BERT.
    """

    parts = ("vision", "text", "fusion")
    needs = ("segments.hidden", "segments")
    predicts_text = True
    borrows = True  # the text tower's word vectors

    def __init__(
        self,
        model: VLM,
        *,
        share: Annotated[float, Field(gt=0, lt=1)] = 0.2,
        top: Annotated[float, Field(gt=0, lt=1)] = 0.2,
        chance: Annotated[float, Field(ge=0, lt=1)] = 0.5,
    ):
        super().__init__(model)
        self.share, self.top, self.chance = share, top, chance
        self.head = WordHead(model)
        vision, fusion = model.part("vision"), model.part("fusion")
        if not vision.extra:
            raise DiptychError("objective masked_speech: a frame is read at its class token; set parts.vision.kind: class")
        if not hasattr(fusion, "embed"):
            raise DiptychError("objective masked_speech: words and frames are one sequence here; set parts.fusion.kind: words")
        self._read = [model.part("text"), fusion]  # in a list: shared, not owned

    def hide(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Changed ids, and which words are hidden: [B, T] each."""
        text, fusion = self._read
        words = words_of(ids, mask)
        weights = attended_weights(words, attention_received(text.transformer, fusion.embed(ids), mask), self.top, self.chance)
        # the k largest of log w plus Gumbel noise are k draws without replacement (Kool et al. 2019)
        noise = -torch.log(-torch.log(torch.rand(ids.shape, device=ids.device).clamp(1e-9, 1 - 1e-6)))
        order = (weights.log() + noise).argsort(1, descending=True).argsort(1)
        chances = torch.tensor(SPANS, device=ids.device).expand(len(ids), -1)
        lower, upper = (torch.multinomial(chances, ids.shape[1], replacement=True) for _ in range(2))
        hidden = spans(order, hidden_counts(words, self.share), lower, upper, words, weights)
        return bert_noise(ids, hidden, len(self.head.bias)), hidden

    @provides("segments.hidden", "segments", "segments.long_tokens")
    def hidden(self, segments: Segments, tokens: Tokens) -> Hidden:
        """The words of each clip, some of them hidden, and its frames, after attention to each other."""
        ids, mask = story_of(segments)
        changed, where = self.hide(ids, mask)
        words, seen = self._read[1].read(changed, mask, tokens)
        N = seen.tokens.shape[1] // segments.pieces
        return Hidden(words.tokens, seen.tokens[:, ::N], where)

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        hidden: Hidden = p["segments.hidden"]
        ids = story_of(p["segments"])[0]
        return F.cross_entropy(self.head(hidden.words[hidden.where]).float(), ids[hidden.where])

    def terms(self, p: Pass) -> int:
        """The number of hidden words, which does not depend on which ones they are."""
        return int(hidden_counts(words_of(*story_of(p["segments"])), self.share).sum())


def order_loss(logits: Tensor, place: Tensor) -> Tensor:
    """Whether i is at the same time as j, before it or after it, for all pairs of a clip: the mean cross-entropy.

    logits [B, K, K, 3]: same, before, after. place [B, K]: below 0 where the place of frame j is not known. A pair of which both
    places are known weighs ``EASY``.
    """
    i = torch.arange(place.shape[1], device=place.device)
    target = (i[:, None] < i).long() + 2 * (i[:, None] > i).long()
    losses = F.cross_entropy(logits.flatten(0, 2).float(), target.expand(len(place), -1, -1).flatten(), reduction="none")
    known = place >= 0
    weights = torch.where(known[:, :, None] & known[:, None], EASY, 1.0).flatten()
    return (losses * weights).mean()


class FrameOrder(Objective):
    """Which of two pieces of a clip comes first, of each frame with each frame, and of each text with each frame: an MLP on the two
    vectors that the shared transformer gives (``segments.hidden`` of ``masked_speech``). The places of some frames are withheld
    (``data.fields: {segments: {shuffle: 0.4}}``). The loss is the sum of both. The authors' fourth class, pieces of different
    clips, does not occur: a sequence is of one clip.
    """

    needs = ("segments.hidden", "segments")

    def __init__(self, model: VLM):
        super().__init__(model)
        if not model.graph.gives("segments.hidden"):
            raise DiptychError(
                "objective frame_order: reads words and frames as masked_speech has read them; name masked_speech before it"
            )
        self.of_frames, self.of_texts = (self.head(model.part("fusion").width) for _ in range(2))

    @staticmethod
    def head(width: int) -> nn.Sequential:
        """Two vectors → same, before, after."""
        return nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, 3))

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        hidden: Hidden = p["segments.hidden"]
        segments: Segments = p["segments"]
        assert segments.place is not None
        place = segments.place.view(-1, segments.pieces)
        texts = at_starts(hidden.words, story_of(segments)[0], segments.pieces)
        loss = order_loss(self.of_frames(pairs(hidden.frames, hidden.frames)), place)
        return loss + order_loss(self.of_texts(pairs(texts, hidden.frames)), place)


def pairs(a: Tensor, b: Tensor) -> Tensor:
    """Each of a [B, K, D] with each of b: [B, K, K, 2·D]."""
    K = a.shape[1]
    return torch.cat([a[:, :, None].expand(-1, -1, K, -1), b[:, None].expand(-1, K, -1, -1)], -1)
