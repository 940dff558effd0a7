"""Several texts of a sample at once, and the concepts that the captions of a whole source name."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import Field as Limit

from diptych.core.batch import Labels, Texts
from diptych.core.errors import DiptychError
from diptych.core.sample import Sample, class_text, flat, in_template
from diptych.data.fields.base import Context, Draw, Field
from diptych.data.fields.text import meaning_number, tokenized
from diptych.data.regions.chunks import chunks
from diptych.data.source import BrokenItem
from diptych.data.text import normalise

READ = 2000  # samples in which concepts are counted


class CaptionsField(Field):
    """Several texts of each sample → ``Texts`` with owner rows.

    of: the sample's field with the texts; in a regions field, its phrases. sentences: each sentence of a text is a text of its own
    (DreamLIP's sub-captions; DCI's dense captions). take: ``random``, drawn anew each time; ``first``; ``longest`` (FG-CLIP's long
    caption). most: at most this many a sample; 0: all.
    """

    kind = "text"
    derived = True

    def __init__(
        self,
        name: str,
        tokenizer: Any,
        *,
        of: str = "text",
        sentences: bool = False,
        take: Literal["random", "first", "longest"] = "random",
        most: Annotated[int, Limit(ge=0)] = 0,
    ):
        super().__init__(name)
        self.tokenizer, self.of, self.sentences, self.take, self.most = tokenizer, of, sentences, take, most

    @classmethod
    def build(cls, name: str, context: Context) -> CaptionsField:
        """The field of this name for a loader."""
        return cls(name, context.tokenizer, **context.options)

    def fit(self, sample: Sample, rng: Callable[[], random.Random]) -> list[str]:
        """All the texts of a sample."""
        value = sample.fields.get(self.of)
        texts = [r.phrase for r in value] if isinstance(value, list) else getattr(value, "texts", [])
        if self.sentences:
            texts = [s for text in texts for s in re.split(r"(?<=[.!?;])\s+", text) if s.strip()]
        texts = list(dict.fromkeys(texts))
        if not texts:
            raise BrokenItem(sample.id, f"no texts in '{self.of}', of which '{self.name}' is made")
        return texts

    def rest(self, sample: Sample) -> Sample:
        """The whole sample: other fields read its texts."""
        return sample

    def collate(self, rows: Sequence[Draw]) -> Texts:
        """The texts of all samples, those of a sample together."""
        import torch

        texts, owners = flat([self._chosen(row) for row in rows])
        meaning = torch.tensor([meaning_number(normalise(t)) for t in texts])
        return tokenized(self.tokenizer, texts, meaning=meaning, owner=torch.tensor(owners))

    def _chosen(self, row: Draw) -> list[str]:
        texts: list[str] = row.fitted[self.name]
        most = self.most or len(texts)
        if self.take == "longest":
            return sorted(texts, key=len, reverse=True)[:most]
        if self.take == "first" or len(texts) <= most:
            return texts[:most]
        return row.stream(meaning_number(self.name)).sample(texts, most)


PROMPTS = ("a photo of a {}", "a picture of a {}", "an image of a {}", "there is a {}", "this is a {}", "a good photo of a {}")


class NounsField(Field):
    """Nouns of the caption that is read, each in a prompt drawn at random → ``Texts`` with owner rows (GroupViT's multi-label
    contrast). most: nouns a caption, drawn at random where it has more. prompts: texts with ``{}`` in the noun's place.
    """

    kind = "text"
    derived = True

    def __init__(self, name: str, tokenizer: Any, *, most: Annotated[int, Limit(ge=1)] = 3, prompts: Sequence[str] = PROMPTS):
        super().__init__(name)
        if wrong := [p for p in prompts if "{}" not in p]:
            raise DiptychError(f"data.fields.{name}.prompts: '{wrong[0]}' has no {{}} where the noun goes")
        self.tokenizer, self.most, self.prompts = tokenizer, most, tuple(prompts)

    @classmethod
    def build(cls, name: str, context: Context) -> NounsField:
        """The field of this name for a loader."""
        return cls(name, context.tokenizer, **context.options)

    def fit(self, sample: Sample, rng: Callable[[], random.Random]) -> None:
        """Nothing: the nouns are those of the caption that is drawn later."""
        if not sample.captions:
            raise BrokenItem(sample.id, "no caption")

    def rest(self, sample: Sample) -> Sample:
        """The whole sample: its captions are read later."""
        return sample

    def collate(self, rows: Sequence[Draw]) -> Texts | None:
        """The nouns of all captions; nouns that are equal have an equal meaning. None if no caption has any."""
        import torch

        texts, nouns, owners = [], [], []
        for i, row in enumerate(rows):
            heads = list(dict.fromkeys(chunk.head for chunk in chunks(row.sample.captions[row.caption])))
            draw = row.stream(meaning_number(self.name))
            for noun in heads if len(heads) <= self.most else draw.sample(heads, self.most):
                texts.append(in_template(draw.choice(self.prompts), noun))
                nouns.append(noun)
                owners.append(i)
        if not texts:
            return None
        meaning = torch.tensor([meaning_number(noun) for noun in nouns])
        return tokenized(self.tokenizer, texts, meaning=meaning, owner=torch.tensor(owners))


class ConceptsField(Field):
    """The concepts of a source as texts, the same in every batch (``concepts.classes``): its classes, or else the heads of the noun
    chunks of its first 2,000 samples' captions, the most frequent first.

    most: how many. template: the text of a concept, with ``{}`` in its place.
    """

    kind = "label"
    inner = {"classes": "text"}  # noqa: RUF012 - never changed
    derived = True

    def __init__(self, name: str, tokenizer: Any, concepts: Sequence[str], *, most: int = 200, template: str = "a photo of a {}"):
        super().__init__(name)
        if "{}" not in template:
            raise DiptychError(f"data.fields.{name}.template: '{template}' has no {{}} where the concept goes")
        self.concepts = tuple(concepts[:most])
        self.texts = tokenized(tokenizer, [in_template(template, class_text(c)) for c in self.concepts])

    @classmethod
    def build(cls, name: str, context: Context) -> ConceptsField:
        """The field of this name for a loader. DiptychError if the source has no classes and no captions."""
        concepts = list(getattr(context.source, "classes", None) or counted_concepts(context.source))
        if not concepts:
            where = getattr(context.source, "address", "the source")
            raise DiptychError(f"{where} has neither classes nor captions, of which the field '{name}' makes its concepts")
        return cls(name, context.tokenizer, concepts, **context.options)

    def fit(self, sample: Sample, rng: Callable[[], random.Random]) -> None:
        """Nothing: the concepts are those of the source."""

    def rest(self, sample: Sample) -> Sample:
        """The whole sample."""
        return sample

    def collate(self, rows: Sequence[Draw]) -> Labels:
        """All concepts; the index is 0 for every sample and has no meaning."""
        import torch

        return Labels(torch.zeros(len(rows), dtype=torch.long), self.texts)


def counted_concepts(source: Any) -> list[str]:
    """The heads of noun chunks in the captions of a source's first samples, the most frequent first."""
    count: Counter[str] = Counter()
    for sample in islice((source[i] for i in range(len(source))), READ):
        count.update({chunk.head for caption in sample.captions for chunk in chunks(caption)})
    return [word for word, _ in sorted(count.items(), key=lambda pair: (-pair[1], pair[0]))]
