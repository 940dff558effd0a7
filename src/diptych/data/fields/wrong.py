"""Several wrong versions of a caption, by kind (CE-CLIP)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diptych.core.batch import Texts
from diptych.core.errors import DiptychError, nearest
from diptych.core.sample import Sample
from diptych.data.fields.base import Context, Draw, Field
from diptych.data.fields.text import meaning_number, tokenized
from diptych.data.regions.changes import KINDS, Vocabulary, changed, vocabulary_of
from diptych.data.source import BrokenItem

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class WrongTexts(Texts):
    """Wrong versions of texts. kinds: int64 [n], which kind each is of."""

    kinds: Tensor | None = None

    row_wise = (*Texts.row_wise, "kinds")  # type: ignore[assignment]


class WrongField(Field):
    """Wrong versions of the caption that is read → ``WrongTexts`` with owner rows: one of each kind that its words allow
    (``data.regions.changes``). kinds: which, in order; the number of a kind is its place here.
    """

    kind = "text"
    derived = True

    def __init__(self, name: str, tokenizer: Any, words: Vocabulary, *, kinds: Sequence[str] = KINDS):
        super().__init__(name)
        for kind in kinds:
            if kind not in KINDS:
                raise DiptychError(f"data.fields.{name}.kinds: there is no kind '{kind}'{nearest(kind, KINDS)}")
        self.tokenizer, self.words, self.kinds = tokenizer, words, tuple(kinds)

    @classmethod
    def build(cls, name: str, context: Context) -> WrongField:
        """The field of this name for a loader; reads captions of the source, whose words take the places of others."""
        return cls(name, context.tokenizer, vocabulary_of(context.source), **context.options)

    def fit(self, sample: Sample, rng: Callable[[], random.Random]) -> None:
        """Nothing: the caption is drawn later."""
        if not sample.captions:
            raise BrokenItem(sample.id, "no caption")

    def rest(self, sample: Sample) -> Sample:
        """The whole sample: its captions are read later."""
        return sample

    def collate(self, rows: Sequence[Draw]) -> WrongTexts | None:
        """All wrong versions; None if no caption has any."""
        import torch

        texts, owners, kinds = [], [], []
        for i, row in enumerate(rows):
            caption, draw = row.sample.captions[row.caption], row.stream(meaning_number(self.name))
            for k, kind in enumerate(self.kinds):
                wrong = changed(caption, kind, self.words, draw)
                if wrong:
                    texts.append(wrong)
                    owners.append(i)
                    kinds.append(k)
        if not texts:
            return None
        made = tokenized(self.tokenizer, texts)
        return WrongTexts(made.ids, made.mask, made.strings, None, torch.tensor(owners), torch.tensor(kinds))
