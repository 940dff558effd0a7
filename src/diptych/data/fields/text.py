"""Captions, and wrong versions of them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.core.batch import Texts
from diptych.core.errors import DiptychError
from diptych.core.sample import Captions, Sample
from diptych.data.fields.base import Context, Draw, Field
from diptych.data.negatives import swap_words
from diptych.data.source import BrokenItem
from diptych.data.text import normalise

if TYPE_CHECKING:
    import pyarrow as pa


def meaning_number(meaning: str) -> int:
    """63 bits of a hash: equal in every slice of a batch and on every rank, unlike a running number."""
    return int.from_bytes(hashlib.blake2b(meaning.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big") >> 1


def tokenized(tokenizer: Any, strings: Sequence[str], **more: Any) -> Texts:
    """Strings as a batch of texts."""
    import torch

    ids, mask = tokenizer.encode_batch(list(strings))
    return Texts(torch.from_numpy(ids), torch.from_numpy(mask), tuple(strings), **more)


class _Words(Field):
    """Base class of captions and their negatives: a tokenizer, and tokens that are hidden in training."""

    kind = "text"

    def __init__(self, name: str, tokenizer: Any, hidden: float = 0.0):
        super().__init__(name)
        if hidden and not hasattr(tokenizer, "mask"):
            raise DiptychError("data.text_mask: this tokenizer has no [MASK]; use data.tokenizer.kind: bpe")
        self.tokenizer, self.hidden = tokenizer, hidden

    @classmethod
    def build(cls, name: str, context: Context) -> _Words:
        """The field of this name for a loader."""
        return cls(name, context.tokenizer, context.text_mask)

    def masked(self, ids: Any, rows: Sequence[Draw]) -> Any:
        """Hides each token except [BOS], [EOS] and [PAD] with the probability ``text_mask``, so that no caption can be memorised
        (after Jayaraman et al., arXiv:2402.02103). The same positions are hidden in a caption and its wrong version: otherwise the
        hidden positions would reveal which is which.
        """
        import torch

        chance = np.stack([np.random.default_rng((row.seed, row.position, 3)).random(self.tokenizer.max_length) for row in rows])
        special = torch.stack([ids == i for i in (self.tokenizer.pad, self.tokenizer.bos, self.tokenizer.eos)]).any(0)
        hidden = torch.from_numpy(chance[:, : ids.shape[1]] < self.hidden) & ~special
        return torch.where(hidden, self.tokenizer.mask, ids)

    def fit(self, sample: Sample, rng: Callable[[], random.Random]) -> Any:
        """A sample's value as it is kept until it is collated: decoded, at the model's size, augmented."""
        if not sample.captions:
            raise BrokenItem(sample.id, "no caption")

    def rest(self, sample: Sample) -> Sample:
        """The whole sample, since texts are small."""
        return sample  # texts are small, and other fields read them


class TextField(_Words):
    """``Captions`` → ``Texts``: one of the captions of each sample, drawn anew each time. Under another name than ``text``: of the
    texts that the sample has under that name, drawn independently.
    """

    def fit(self, sample: Sample, rng: Callable[[], random.Random]) -> Captions:
        """The sample's texts."""
        captions = sample.fields.get(self.name)
        if captions is not None and not isinstance(captions, Captions):
            raise BrokenItem(sample.id, f"{self.name} is a {type(captions).__name__}; expected diptych.core.sample.captioned([…])")
        if captions is None or not captions.texts:
            raise BrokenItem(sample.id, "no caption" if self.name == "text" else f"no {self.name}")
        return captions

    def drawn_of(self, row: Draw) -> int:
        """Which of the texts is read here."""
        if self.name == "text":
            return row.caption
        return row.stream(meaning_number(self.name)).randrange(len(row.fitted[self.name].texts))

    def collate(self, rows: Sequence[Draw]) -> Texts:
        """A batch of it; None if no sample has any."""
        import torch

        strings, meanings = [], []
        for row in rows:
            captions, k = row.fitted[self.name], self.drawn_of(row)
            strings.append(captions.texts[k])
            meanings.append(captions.meanings[k] if k < len(captions.meanings) else normalise(captions.texts[k]))
        texts = tokenized(self.tokenizer, strings, meaning=torch.tensor([meaning_number(m) for m in meanings]))
        if self.hidden:
            texts.ids = self.masked(texts.ids, rows)
        return texts

    @classmethod
    def schema(cls) -> dict[str, pa.DataType]:
        """Arrow columns of a packed value, by name; the value's presence is a column of the shard."""
        import pyarrow as pa

        return {"captions": pa.list_(pa.string()), "meanings": pa.list_(pa.string())}

    @classmethod
    def pack(cls, value: Captions, scale: Any, store: Any) -> dict[str, Any]:
        """A value as a row of these columns."""
        return {"captions": list(map(valid, value.texts)), "meanings": list(map(valid, value.meanings))}

    @classmethod
    def unpack(cls, row: Mapping[str, Any], load: Any) -> Captions:
        """The value again."""
        return Captions(row["captions"], row["meanings"])

    @classmethod
    def blank(cls, value: Captions) -> Captions:
        """A value of the same shape that says nothing: the blind control."""
        return Captions([""] * len(value.texts))

    @classmethod
    def draw(cls, value: Captions) -> list[Any]:
        """What to show a person: pictures (uint8 arrays) and lines of text, in order."""
        return list(value.texts)


class NegativesField(_Words):
    """A wrong version of the caption that is read: the source's, or the caption with two words swapped. ``Texts`` with owner rows;
    captions without a wrong version have no row. swap: false: only the source's.
    """

    derived = True

    def __init__(self, name: str, tokenizer: Any, hidden: float = 0.0, *, swap: bool = True):
        super().__init__(name, tokenizer, hidden)
        self.swap = swap

    @classmethod
    def build(cls, name: str, context: Context) -> NegativesField:
        """The field of this name for a loader."""
        return cls(name, context.tokenizer, context.text_mask, **context.options)

    def collate(self, rows: Sequence[Draw]) -> Texts | None:
        """A batch of it; None if no sample has any."""
        import torch

        wrong = []
        for row in rows:
            k = row.caption  # drawn first: the stream of random numbers is the text's
            given = row.sample.fields.get(self.name, [])
            known = given[k] if k < len(given) else ""
            swapped = swap_words(row.sample.captions[k], row.words) if self.swap and not known else ""
            wrong.append(known or swapped or "")
        owners = [i for i, text in enumerate(wrong) if text]
        if not owners:
            return None
        texts = tokenized(self.tokenizer, [wrong[i] for i in owners], owner=torch.tensor(owners))
        if self.hidden:
            texts.ids = self.masked(texts.ids, [rows[i] for i in owners])
        return texts

    @classmethod
    def schema(cls) -> dict[str, pa.DataType]:
        """Arrow columns of a packed value, by name; the value's presence is a column of the shard."""
        import pyarrow as pa

        return {"negatives": pa.list_(pa.string())}

    @classmethod
    def pack(cls, value: list[str], scale: Any, store: Any) -> dict[str, Any]:
        """A value as a row of these columns."""
        return {"negatives": list(map(valid, value))}

    @classmethod
    def unpack(cls, row: Mapping[str, Any], load: Any) -> list[str]:
        """The value again."""
        return list(row["negatives"])

    @classmethod
    def blank(cls, value: list[str]) -> list[str]:
        """A value of the same shape that says nothing: the blind control."""
        return [""] * len(value)

    @classmethod
    def draw(cls, value: list[str]) -> list[Any]:
        """What to show a person: pictures (uint8 arrays) and lines of text, in order."""
        return [f"✗ {text}" for text in value if text]


def valid(text: str) -> str:
    """Without half surrogates, which UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode()
