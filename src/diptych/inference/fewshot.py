"""Few-shot use of a language model that learned from captions: images with their captions, then an image to continue from.

[BOS] image₁ text₁ … imageₖ textₖ image → words (Frozen, Tsimpoukelli et al. 2021, arXiv:2106.13884; Flamingo, Alayrac et al. 2022,
§2.5). A prompt is between image and text. The tokens before the last image are read once for all images that follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from diptych.core.capabilities import Example, Image
from diptych.core.encodings import Pass
from diptych.core.errors import DiptychError
from diptych.inference.chat import ANSWERS, READ, padded, tried
from diptych.models.layers.cache import Prefix
from diptych.models.layers.ragged import Ragged
from diptych.models.vlm import VLM


class FewShot:
    """side: the pass over images; inference: the context in which it computes."""

    def __init__(
        self,
        model: VLM,
        side: Callable[[Sequence[Image]], Pass],
        inference: Callable[[], AbstractContextManager[Any]],
    ):
        self.model, self.side, self.inference = model, side, inference

    def groups(self, prompts: Sequence[str], size: int) -> Iterator[np.ndarray]:
        """Indices of prompts of one length in tokens, at most ``size``: there is no padding between the examples and the rest, so
        that sliding windows reach as far as in one sequence.
        """
        lengths = np.array([len(ids) for ids in self._pieces(prompts)], dtype=np.int64)
        for length in np.unique(lengths):
            members = np.flatnonzero(lengths == length)
            yield from (members[at : at + size] for at in range(0, len(members), size))

    def read(self, images: Sequence[Image], prompts: Sequence[str], examples: Sequence[Sequence[Example]]) -> Prefix:
        """The prefix of examples, image and prompt of each row, before the words that follow. All prompts have one length in
        tokens.
        """
        lm, device = self.model.part("lm"), next(self.model.parameters()).device
        before = [tuple(_resolved(e, prompt) for e in row) for row, prompt in zip(examples, prompts, strict=True)]
        number: dict[Any, int] = {}
        which = [number.setdefault(tuple((id(e.image), e.text, e.prompt) for e in row), len(number)) for row in before]
        heads = [before[which.index(i)] for i in range(len(number))]
        distinct = {id(image): image for image in [*(e.image for row in heads for e in row), *images]}
        place = {key: i for i, key in enumerate(distinct)}
        shown = self.side(list(distinct.values()))["image.prefix"]
        if isinstance(shown, Ragged):
            raise DiptychError("examples: these pictures have different numbers of tokens; show pictures of one shape")

        def of(pictures: Sequence[Image]) -> torch.Tensor | None:
            """The tokens of these pictures, [n, K, D]; None if there are none."""
            return shown[torch.tensor([place[id(p)] for p in pictures], device=device)] if pictures else None

        image = lm.place(shown.shape[1])
        begun = [self._head(row, image) for row in heads]
        tails = [[*image, *ids] for ids in self._pieces(prompts)]
        self._check(max(map(len, begun)) + len(tails[0]))
        past = None
        if any(begun):
            ids, mask = padded(begun, self.model.tokenizer.pad, left=True)
            past = lm.read(ids.to(device), mask.to(device), of([e.image for row in heads for e in row])).cache
            past = past[torch.tensor(which, device=device)] if len(heads) > 1 else past
        ids, mask = padded(tails, self.model.tokenizer.pad, left=True)
        result: Prefix = lm.read(ids.to(device), mask.to(device), of(images), past)
        return result

    def loglikelihood(
        self, images: Sequence[Image], texts: Sequence[str], prompts: Sequence[str], examples: Sequence[Sequence[Example]]
    ) -> np.ndarray:
        """log P(text, [EOS] | examples, image, prompt) in nats, float32 [N]; an image with a prompt is read once for all of its
        texts.
        """
        readings: dict[Any, int] = {}
        first: list[int] = []
        which = np.empty(len(texts), dtype=np.int64)
        for k, (image, prompt, row) in enumerate(zip(images, prompts, examples, strict=True)):
            key = id(image), prompt, tuple((id(e.image), e.text, e.prompt) for e in row)
            if key not in readings:
                readings[key] = len(readings)
                first.append(k)
            which[k] = readings[key]
        ids, mask = self.model.tokenizer.encode_batch([_behind(p, t) for t, p in zip(texts, prompts, strict=True)])
        lengths = mask.sum(1)
        out = np.empty(len(texts), dtype=np.float32)
        for group in self.groups([prompts[k] for k in first], READ):
            own = [first[i] for i in group]
            at = {int(i): row for row, i in enumerate(group)}
            members = np.flatnonzero(np.isin(which, group))
            members = members[np.argsort(lengths[members], kind="stable")]  # texts of similar length together: little padding
            with self.inference():
                read = self.read([images[k] for k in own], [prompts[k] for k in own], [examples[k] for k in own])
                for start in range(0, len(members), ANSWERS):
                    rows = members[start : start + ANSWERS]
                    answers = [ids[i, 1 : lengths[i]].tolist() for i in rows]
                    out[rows] = tried(self.model, read, np.array([at[int(which[i])] for i in rows]), answers)
        return out

    def _head(self, examples: Sequence[Example], image: list[int]) -> list[int]:
        """Everything before the last image; nothing if words look at images and there is no example."""
        ids = [] if self.model.part("lm").gated else [self.model.tokenizer.bos]
        texts = self._pieces([text for e in examples for text in (e.prompt or "", _behind(e.prompt, e.text))])
        for asked, text in zip(texts[::2], texts[1::2], strict=True):
            ids += [*image, *asked, *text]
        return ids

    def _pieces(self, texts: Sequence[str]) -> list[list[int]]:
        pieces: list[list[int]] = self.model.tokenizer.caption_pieces(list(texts))
        return pieces

    def _check(self, length: int) -> None:
        context = getattr(self.model.part("lm").lm.model.config, "max_position_embeddings", None)
        if context and length >= context:
            raise DiptychError(f"examples and image come to {length} tokens; the language model reads {context}: show fewer")


def _resolved(e: Example, prompt: str) -> Example:
    return e._replace(prompt=prompt) if e.prompt is None else e


def _behind(prompt: str | None, text: str) -> str:
    """Words that follow a prompt begin with a space."""
    return f" {text}" if prompt else text
