"""One batch through one model: every encoding is computed when first asked for, and at most once.

A ``Pass`` is two sides, image and text, joined. A view of the same batch (``masked``, ``with_text``) takes a new side for what
differs and shares the other, so nothing is encoded twice, whichever objective asks first.

Shapes: B batch, N image tokens, T text tokens, D width, E embedding, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.core.batch import Batch, Tokens, floats
from diptych.core.errors import DiptychError
from diptych.models.vision.drawn import random_crops

if TYPE_CHECKING:
    from diptych.models.decoders.interleaved import Read
    from diptych.models.fusion.qformer import Looked
    from diptych.models.language.lm import Remembered
    from diptych.models.vlm import VLM


class ImageSide:
    """A batch's images and what the model makes of them alone."""

    def __init__(self, model: VLM, pixels: Tensor | None, keep: Tensor | None = None, hidden: Tensor | None = None):
        self.model, self._pixels, self.keep, self.hidden = model, pixels, keep, hidden
        self._of: tuple[ImageSide, Tensor] | None = None  # the side that these images were taken from, and which of them
        self.beside: TextSide | None = None  # the captions

    @cached_property
    def pixels(self) -> Tensor:
        """[B, 3, H, W], float32 in [−1, 1]"""
        return floats(self._given)

    @property
    def _given(self) -> Tensor:
        assert self._pixels is not None, "these images are known by their encodings only"
        return self._pixels

    @cached_property
    def encoding(self) -> Tokens:
        if self._of is not None:
            return self._of[0].encoding[self._of[1]]
        features = self.model.features
        if features is not None and self.keep is None and self.hidden is None:
            return features(self._given, lambda new: self.model.run("vision", floats(new), None))
        if self.hidden is not None:
            return self.model.run("vision", self.pixels, self.keep, self.hidden)
        return self.model.run("vision", self.pixels, self.keep)

    @cached_property
    def embedding(self) -> Tensor:
        if self.model.embeds_by_lm:
            both = self.model.captions and self.beside is not None and torch.is_grad_enabled() and self.model.part("lm").reads_both
            state = self.read[1] if both else self.model.part("lm").image_state(self.remembered)
            return F.normalize(state.float(), dim=-1)
        if self.model.asks:
            raise DiptychError("an image has an embedding a query here, and none that is a vector; contrast by query_contrast")
        return F.normalize(self.model.image_projection(self.encoding.pooled).float(), dim=-1)

    @property
    def class_tokens(self) -> Tensor:
        """The tower's class (or mixture) tokens, [B, K, D]."""
        if "class_tokens" in vars(self):  # given, where a batch is put together from pieces
            return vars(self)["class_tokens"]
        return self.encoding.tokens[:, : self.model.part("vision").extra]

    @cached_property
    def views(self) -> Tensor:
        """What the tower makes of random crops of the images, drawn anew each time: pooled, [B, V, D]."""
        V = self.model.views
        crops = random_crops(self.pixels.repeat_interleave(V, 0), self.model.least)
        return self.model.run("vision", crops, None).pooled.unflatten(0, (-1, V))

    @cached_property
    def token_embedding(self) -> Tensor:
        """Every token in the shared space: [B, N, E], unit length, float32."""
        return F.normalize(self.model.image_projection(self.encoding.tokens).float(), dim=-1)

    @cached_property
    def queries(self) -> Looked:
        """What queries find in the image (BLIP-2)."""
        if self._of is not None:
            return self._of[0].queries[self._of[1]]
        return self.model.part("text").look(self.encoding)

    @cached_property
    def query_embedding(self) -> Tensor:
        """Every query in the shared space: [B, Q, E], unit length, float32."""
        if self._of is not None:
            return self._of[0].query_embedding[self._of[1]]
        return F.normalize(self.model.image_projection(self.queries.tokens).float(), dim=-1)

    @cached_property
    def prefix(self) -> Tensor:
        """[B, N, D]: what the language model reads of the image."""
        if self._of is not None:
            return self._of[0].prefix[self._of[1]]
        asks = getattr(self.model.part("connector"), "reads_queries", False)
        return self.model.run("connector", self.queries.tokens if asks else self.encoding.tokens)

    @cached_property
    def codes(self) -> Tensor:
        """[B, N]: the image in the quantizer's codes."""
        if self._of is not None:
            return self._of[0].codes[self._of[1]]
        return self.model.part("quantizer").codes(self.pixels)

    @cached_property
    def read(self) -> tuple[Tensor, Tensor]:
        """The captions' next-token logits and the images' states by the language model, in one go."""
        assert self.beside is not None
        return self.model.part("lm").caption_and_state(self.prefix, self.beside.ids, self.beside.mask)

    @cached_property
    def remembered(self) -> Remembered | Read:
        """The image as the language model, or the decoder of codes, remembers it."""
        if self._of is not None:  # many captions on one image: it is read once
            whole, index = self._of
            return whole.remembered.rows(index)
        if self.model.reads_codes:
            return self.model.part("decoder").remember(self.codes)
        return self.model.part("lm").remember(self.prefix)

    @cached_property
    def log_prior(self) -> Tensor:
        """log p(codes), given no caption: [B]."""
        return self.model.part("decoder").log_prior(self.codes)

    def rows(self, index: Tensor) -> ImageSide:
        """Some of the images, with repeats if need be; their encodings are these images' when they are asked for, not computed again."""
        side = ImageSide(self.model, None)
        side._of = (self, index)
        return side


class TextSide:
    """A batch's texts and what the model makes of them alone."""

    def __init__(self, model: VLM, ids: Tensor, mask: Tensor, captions: Sequence[str] = ()):
        self.model, self.ids, self.mask, self.captions = model, ids, mask, captions

    @cached_property
    def encoding(self) -> Tokens:
        return self.model.run("text", self.ids, self.mask, self.captions)

    @cached_property
    def embedding(self) -> Tensor:
        if self.model.embeds_by_lm:
            return F.normalize(self.model.part("lm").text_state(self.ids, self.mask).float(), dim=-1)
        return F.normalize(self.model.text_projection(self.encoding.pooled).float(), dim=-1)

    @property
    def pooled(self) -> Tensor:
        """[B, D]"""
        if "pooled" in vars(self):
            return vars(self)["pooled"]
        return self.encoding.pooled

    @cached_property
    def token_embedding(self) -> Tensor:
        """Every token in the shared space: [B, T, E], unit length, float32."""
        return F.normalize(self.model.text_projection(self.encoding.tokens).float(), dim=-1)

    def rows(self, index: Tensor) -> TextSide:
        captions = tuple(self.captions[i] for i in index.tolist()) if self.captions else ()
        ids, mask = self.ids[index], self.mask[index]
        longest = ids.shape[1] if torch.is_grad_enabled() else int(mask.sum(1).max())  # scoring need not carry others' padding
        side = TextSide(self.model, ids[:, :longest], mask[:, :longest], captions)
        if "text" in self.model.parts:
            encoding = self.encoding[index]
            whole = encoding.mask is not None and encoding.mask.shape == mask.shape  # a token of its own for each id
            cut = (encoding.tokens[:, :longest], encoding.pooled, mask[:, :longest])
            side.__dict__["encoding"] = Tokens(*cut) if whole else encoding
        return side


class Pass:
    """What objectives and scorers see of a batch.

    rows: the samples that this process answers for, where the batch is shared out among several; None: all.
    """

    rows: slice | None = None

    def __init__(self, model: VLM, images: ImageSide | None, texts: TextSide | None, batch: Batch | None = None):
        self.model = model
        self.batch = batch if batch is not None else Batch()
        self._images, self._texts = images, texts

    @property
    def alone(self) -> Pass:
        """This process's own samples by themselves."""
        return self

    def around(self, x: Tensor, meaning: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None, bool]]:
        """This process's x [B, E] and meaning [B], then every other process's as they come round: (x, meaning, whether they are its own)."""
        yield x, meaning, True

    @classmethod
    def of(cls, model: VLM, batch: Batch) -> Pass:
        images = None
        if batch.pixels is not None:
            images = ImageSide(model, batch.pixels, model.draw_patches(len(batch.pixels), batch.pixels.device))
        texts = None
        if batch.text is not None:
            assert batch.text_mask is not None
            texts = TextSide(model, batch.text, batch.text_mask, batch.captions)
        if images is not None:
            images.beside = texts
        return cls(model, images, texts, batch)

    @property
    def images(self) -> ImageSide:
        assert self._images is not None, "this batch has no images"
        return self._images

    @property
    def texts(self) -> TextSide:
        assert self._texts is not None, "this batch has no text"
        return self._texts

    @property
    def size(self) -> int:
        return len(self._texts.ids) if self._texts is not None else len(self.images.pixels)

    @cached_property
    def negatives(self) -> TextSide | None:
        """The batch's hard negative texts."""
        batch = self.batch
        if batch.negatives is None or batch.negatives_mask is None:
            return None
        return TextSide(self.model, batch.negatives, batch.negatives_mask, batch.negative_captions)

    @cached_property
    def lone_images(self) -> ImageSide | None:
        """Images that came without a caption."""
        return None if self.batch.lone_pixels is None else ImageSide(self.model, self.batch.lone_pixels)

    @cached_property
    def lone_texts(self) -> TextSide | None:
        """Texts that came without an image."""
        batch = self.batch
        return (
            None if batch.lone_text is None or batch.lone_mask is None else TextSide(self.model, batch.lone_text, batch.lone_mask)
        )

    # --- one modality alone ---

    @property
    def image(self) -> Tokens:
        """tokens [B, N, D], pooled [B, D]"""
        return self.images.encoding

    @property
    def text(self) -> Tokens:
        """tokens [B, T, D], pooled [B, D], mask [B, T]"""
        return self.texts.encoding

    @property
    def text_ids(self) -> Tensor:
        """[B, T]: [BOS] words [EOS] [PAD]…"""
        return self.texts.ids

    @property
    def text_mask(self) -> Tensor:
        """[B, T] bool, True at real tokens"""
        return self.texts.mask

    @property
    def image_embedding(self) -> Tensor:
        """[B, E], unit length, float32"""
        return self.images.embedding

    @property
    def text_embedding(self) -> Tensor:
        """[B, E], unit length, float32"""
        return self.texts.embedding

    # --- both together ---

    @property
    def similarity(self) -> Tensor:
        """[B, B] of images (rows) and texts: the cosine, or that of whichever query of the image is nearest."""
        if self.model.asks:
            from diptych.models.fusion.qformer import best_query

            return best_query(self.images.query_embedding, self.text_embedding)
        return self.image_embedding @ self.text_embedding.T

    @cached_property
    def _fused(self) -> tuple[Tokens, Tokens]:
        return self.model.part("fusion").both(self.text, self.image)

    @cached_property
    def fused_text(self) -> Tokens:
        """Text tokens [B, T, D] that have looked at the image."""
        fusion = self.model.part("fusion")
        if hasattr(fusion, "both"):
            return self._fused[0]
        if getattr(fusion, "reads_words", False):
            return fusion.read(self.text_ids, self.text_mask, self.image)
        return fusion.text(self.text, self.image)

    @cached_property
    def fused_image(self) -> Tokens:
        """Image tokens [B, N, D] that have looked at the text."""
        if hasattr(self.model.part("fusion"), "both"):
            return self._fused[1]
        return self.model.part("fusion").image(self.image, self.text)

    @cached_property
    def next_token_logits(self) -> Tensor:
        """[B, T − 1, V]: row t speaks of text token t + 1, given the image and the tokens up to t; by the language model, where there is one."""
        if "lm" in self.model.parts:
            lm = self.model.part("lm")
            if "read" in vars(self.images) and self.images.beside is self._texts:
                return self.images.read[0]
            if torch.is_grad_enabled() and "remembered" not in vars(
                self.images
            ):  # in one go, unless the image has been read already
                return lm.caption_logits(self.images.prefix, self.text_ids, self.text_mask)
            return lm.continue_logits(self.images.remembered, self.text_ids, self.text_mask)
        return self.decoder_logits

    @cached_property
    def decoder_logits(self) -> Tensor:
        """``next_token_logits`` by the decoder, also beside a language model."""
        decoder = self.model.part("decoder")
        if self.model.reads_codes:
            if torch.is_grad_enabled():
                return decoder.caption_logits(self.images.codes, self.text_ids, self.text_mask)
            return decoder.continue_logits(self.images.remembered, self.text_ids, self.text_mask)
        if getattr(decoder, "reads_queries", False):
            return decoder.tell(self.text_ids, self.text_mask, self.images.queries)[:, :-1]
        if getattr(decoder, "reads_words", False):
            return decoder.read(self.text_ids, self.text_mask, self.image)[:, :-1]
        return decoder(self.text, self.image)[:, :-1]

    @cached_property
    def answer_logits(self) -> Tensor:
        """[n, V]: of conversations, over their n learned tokens, row by row."""
        batch = self.batch
        assert batch.learned is not None and batch.positions is not None
        shown = None if batch.pixels is None else self.images.prefix
        return self.model.part("lm").answer_logits(batch.text, shown, batch.positions, batch.learned)

    # --- other views ---

    def masked(self, image: Tensor | None = None, text: Tensor | None = None, hidden: Tensor | None = None) -> Pass:
        """The same batch with only the image tokens ``image`` [B, K] looked at, or a mask token in place of those ``hidden`` [B, N], or with the
        ids ``text`` [B, T] read instead."""
        images = self._images if image is None and hidden is None else ImageSide(self.model, self.images.pixels, image, hidden)
        texts = self._texts if text is None else TextSide(self.model, text, self.text_mask)
        return Pass(self.model, images, texts, self.batch)

    def with_text(self, ids: Tensor, mask: Tensor, captions: Sequence[str] = ()) -> Pass:
        """The same images beside other texts."""
        return Pass(self.model, self._images, TextSide(self.model, ids, mask, captions), self.batch)

    def some(self, share: float) -> Tensor:
        """Every 1/share-th sample of those that this process answers for. Which they are goes by their place in the whole batch, so that
        pieces of it agree with it."""
        own = range(self.size) if self.rows is None else range(self.rows.start, self.rows.stop)
        start = self.batch.start
        return torch.tensor(
            [i for i in own if math.floor((start + i) * share) > math.floor((start + i - 1) * share)],
            dtype=torch.long,
            device=self.text_ids.device,
        )

    def restricted(self, rows: Tensor) -> Pass:
        """These samples of the batch; their texts keep the encodings already made, their images start afresh."""
        return Pass(self.model, ImageSide(self.model, self.images.pixels[rows]), self.texts.rows(rows))

    def paired(self, images: Tensor, texts: Tensor) -> Pass:
        """Image ``images[k]`` beside text ``texts[k]``, from encodings already made."""
        return Pass(self.model, self.images.rows(images), self.texts.rows(texts))
