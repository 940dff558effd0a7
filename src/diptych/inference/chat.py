"""Prompts for a run that learned from conversations: by its chat template, with exactly the tokens of training."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from diptych.core.batch import Batch, Turns
from diptych.core.capabilities import Example, Image
from diptych.core.encodings import Pass
from diptych.core.errors import DiptychError
from diptych.core.sample import IMAGE, Turn
from diptych.core.streaming import Writing, cut
from diptych.data.conversations.template import Chat, Document, expanded
from diptych.data.conversations.turns import DESCRIBE, Mistake, check_images, question
from diptych.data.image import as_pixels
from diptych.data.ocr import OcrPrompt, told
from diptych.inference.generate import Begun, Decoding, write, written
from diptych.models.layers.cache import Prefix
from diptych.models.layers.ragged import Ragged
from diptych.models.vlm import VLM
from diptych.objectives.generative import token_log_probabilities

READ = 64  # prompts read at a time
BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a token that is one byte, in vocabularies as SentencePiece makes them
ANSWERS = 128  # answers scored at a time


class Prompt(list[int]):
    """Token ids, and which of them are answers that were given before (``said``)."""

    def __init__(self, ids: Sequence[int], said: Sequence[bool]):
        super().__init__(ids)
        self.said = list(said)


class Answering:
    """side: the pass over images; inference: the context in which it computes; reader: writes the text in each picture behind it
    (``data.ocr``), as in training.
    """

    def __init__(
        self,
        model: VLM,
        chat: Chat,
        side: Callable[[Sequence[Image]], Pass],
        inference: Callable[[], AbstractContextManager[Any]],
        reader: OcrPrompt | None = None,
    ):
        self.reader = reader
        self.model, self.chat, self.side, self.inference = model, chat, side, inference

    def converse(self, images: Sequence[Sequence[Image]], turns: Sequence[Sequence[Turn]], how: Decoding) -> list[str]:
        """The assistant's next turn in each conversation, which has no, one or several images."""
        decoding, behind = self._ends(how)
        out: list[str] = []
        size = max(1, READ // how.beams)
        for start in range(0, len(images), size):
            shown = images[start : start + size]
            prompts = [self._prompt(self._told(t, i), len(i)) for t, i in zip(turns[start : start + size], shown, strict=True)]
            rows = [_number(s, p) for s, p in zip(shown, prompts, strict=True)]
            with self.inference():
                ids = write(self.model, None, decoding, rows if how.samples else None, self._begun(shown, prompts), self.chat.ends)
            out += [cut(self.model.tokenizer.decode(row), behind).strip() for row in ids.tolist()]
        return out

    def stream(self, images: Sequence[Image], turns: Sequence[Turn], how: Decoding) -> Writing:
        """The assistant's next turn in one conversation, token by token: the pieces are together what ``converse`` returns. The
        conversation is read here, so that errors come before the first piece.
        """
        decoding, behind = self._ends(how)
        prompt = self._prompt(self._told(turns, images), len(images))
        rows = [_number(images, prompt)] if how.samples else None
        with self.inference():
            columns = written(self.model, self._begun([images], [prompt]), decoding, rows, self.chat.ends)
        tokenizer = self.model.tokenizer
        ids: list[int] = []

        def steps() -> Iterator[tuple[str, str]]:
            """The text so far after each token, and the same without bytes at its end: they are decoded together, so that one more
            can change all of them.
            """
            settled = 0
            while True:
                with self.inference():  # for one token: what the caller does in between is not part of it
                    column = next(columns, None)
                if column is None:
                    return
                ids.append(int(column[0]))
                settled = settled if BYTE.fullmatch(tokenizer.token(ids[-1])) else len(ids)
                yield tokenizer.decode(ids), tokenizer.decode(ids[:settled])

        ends = {tokenizer.eos, *self.chat.ends}
        return Writing(steps(), behind, len(prompt), lambda: bool(ids) and ids[-1] in ends)

    def _ends(self, how: Decoding) -> tuple[Decoding, tuple[str, ...]]:
        """The settings with the strings that end an answer, and all strings that are cut off behind it."""
        decoding = replace(how, stop=(*how.stop, *self.chat.stop))
        return decoding, (*decoding.stop, self.chat.end.strip()) if self.chat.end.strip() else decoding.stop

    def _begun(self, shown: Sequence[Sequence[Image]], prompts: Sequence[Prompt]) -> Begun:
        read = self._read(shown, prompts)
        return self.model.part("lm").lm.head(read.last[:, -1]), read.cache

    def loglikelihood(
        self, images: Sequence[Image], texts: Sequence[str], prompts: Sequence[str], examples: Sequence[Sequence[Example]]
    ) -> np.ndarray:
        """log P(text, end of answer | examples, image, prompt) in nats, float32 [N]. An image with a prompt is read once for all of
        its texts.
        """
        split: dict[Any, tuple[Prompt, list[int]]] = {}
        readings: dict[Any, int] = {}
        shown: list[list[Image]] = []
        asked: list[Prompt] = []
        answers, which = [], np.empty(len(texts), dtype=np.int64)
        for k, (image, text, prompt, before_it) in enumerate(zip(images, texts, prompts, examples, strict=True)):
            pictures = [*(e.image for e in before_it), image]
            turns = self._told(asked_with(prompt, before_it), pictures)
            words = text, tuple(turns)
            if words not in split:
                split[words] = self._split(turns, text, bool(before_it))
            before, answer = split[words]
            key = tuple(map(id, pictures)), tuple(before)
            if key not in readings:
                readings[key] = len(readings)
                shown.append(pictures)
                asked.append(before)
            which[k] = readings[key]
            answers.append(answer)
        out = np.empty(len(texts), dtype=np.float32)
        lengths = np.array([len(a) for a in answers], dtype=np.int64)
        for start in range(0, len(shown), READ):
            members = np.flatnonzero((which >= start) & (which < start + READ))
            members = members[np.argsort(lengths[members], kind="stable")]  # answers of similar length together: little padding
            with self.inference():
                read = self._read(shown[start : start + READ], asked[start : start + READ])
                for at in range(0, len(members), ANSWERS):
                    rows = members[at : at + ANSWERS]
                    out[rows] = tried(self.model, read, which[rows] - start, [answers[i] for i in rows])
        return out

    def _prompt(self, turns: Sequence[Turn], images: int) -> Prompt:
        try:
            check_images(turns, images)
            document = self.chat.document(turns, ask=True)
        except Mistake as mistake:
            raise DiptychError(f"the prompt cannot be used: {mistake}") from None
        if len(document) >= self.chat.room:
            raise DiptychError(
                f"the conversation has grown to {len(document)} tokens; the model was trained on at most {self.chat.room}"
            )
        return Prompt(document.ids, document.learned)

    def _told(self, turns: Sequence[Turn], images: Sequence[Image]) -> Sequence[Turn]:
        """The turns with the text that the reader sees in the images; as they are without a reader."""
        return (
            turns if self.reader is None else told(turns, [self.reader.of_picture(as_pixels(image, "image")) for image in images])
        )

    def _split(self, turns: Sequence[Turn], text: str, examples: bool) -> tuple[Prompt, list[int]]:
        """Token ids of the prompt and of the answer, as in training. examples: whether turns before the last have answers."""
        before = self._prompt(turns, sum(turn.text.count(IMAGE) for turn in turns)) if examples else None
        try:
            document = self.chat.document([*turns, Turn("assistant", text)])
        except Mistake as mistake:
            raise DiptychError(f"the prompt {turns[-1].text!r} cannot be used: {mistake}") from None
        learned = np.flatnonzero(document.learned)
        learned = learned if before is None else learned[learned >= len(before)]  # the examples' answers are learned, too
        if not len(learned):
            raise DiptychError(f"the answer {text!r} has no tokens, so it has no likelihood")
        begin = learned[0]
        return Prompt(document.ids[:begin], document.learned[:begin]), [document.ids[i] for i in learned]

    def _read(self, shown: Sequence[Sequence[Image]], prompts: Sequence[Prompt]) -> Prefix:
        """Each prompt with its images; an image in several of them is encoded once."""
        distinct = {id(image): image for images in shown for image in images}
        number = {key: i for i, key in enumerate(distinct)}
        device = next(self.model.parameters()).device
        prefix = None
        if distinct:
            order = torch.tensor([number[id(image)] for images in shown for image in images], device=device)
            seen = self.side(list(distinct.values()))
            prefix = self._by_words(seen, order, prompts) if self._words_count else seen["image.prefix"][order]
        prompts = self._with_places(prompts, prefix)
        ids, mask = padded(prompts, self.chat.tokenizer.pad, left=True)
        read: Prefix = self.model.part("lm").read(ids.to(device), mask.to(device), prefix)
        return read

    def _with_places(self, prompts: Sequence[Prompt], prefix: Any) -> list[Prompt]:
        """Prompts with as many places for each image as it has tokens, where that depends on the image."""
        if self.chat.count is None or prefix is None:
            return list(prompts)
        counts = iter(prefix.counts.tolist() if isinstance(prefix, Ragged) else [prefix.shape[1]] * len(prefix))
        made = [expanded(Document(p, p.said, 0), counts) for p in prompts]
        if (longest := max(map(len, made))) >= self.chat.room:
            raise DiptychError(f"a conversation has {longest} tokens; the model was trained on at most {self.chat.room}")
        return [Prompt(m.ids, m.learned) for m in made]

    @cached_property
    def _words_count(self) -> bool:
        """Whether what the language model reads of an image depends on the words of its conversation (connector ``instructed``)."""
        graph, name = self.model.graph, "turns.images.prefix"
        return graph.gives(name) and "turns" in graph.plain(name).inputs

    def _by_words(self, seen: Pass, order: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
        """What the language model reads of the images of all prompts, each by the words of its prompt, as in training."""
        ids, mask = padded(prompts, self.chat.tokenizer.pad, left=False)
        said, _ = padded([list(map(int, prompt.said)) for prompt in prompts], 0, left=False)
        turns = Turns(ids, mask, said.bool(), torch.arange(ids.shape[1]).expand_as(ids)).to(order.device)
        given = {"turns.images.tokens": seen["image.tokens"][order]}
        prefix: torch.Tensor = Pass(self.model, Batch({"turns": turns}, len(prompts)), given=given)["turns.images.prefix"]
        return prefix


def _number(images: Sequence[Image], prompt: Sequence[int]) -> int:
    """The number of a conversation's random stream: the same for the same pictures and words in any batch."""
    return zlib.crc32(b"".join(i.tobytes() for i in images), zlib.crc32(repr(prompt).encode()))


def asked_with(prompt: str, examples: Sequence[Example] = ()) -> list[Turn]:
    """A question about an image, after examples with answers."""
    turns = []
    for e in examples:
        turns += [question((prompt if e.prompt is None else e.prompt) or DESCRIBE), Turn("assistant", e.text)]
    return [*turns, question(prompt or DESCRIBE)]


def tried(model: VLM, read: Prefix, which: np.ndarray, answers: Sequence[Sequence[int]]) -> np.ndarray:
    """log P of answers, each after the row ``which`` of the prefixes, float32."""
    device, pad = read.last.device, model.tokenizer.pad
    ids, mask = padded([[pad, *answer] for answer in answers], pad, left=False)
    ids, mask = ids.to(device), mask.to(device)
    logits = model.part("lm").continue_logits(read[torch.from_numpy(which).to(device)], ids, mask)
    return ((token_log_probabilities(logits, ids[:, 1:]) * mask[:, 1:]).sum(1)).cpu().numpy()


def padded(rows: Sequence[Sequence[int]], pad: int, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """ids and mask [B, T]"""
    T = max(map(len, rows))
    ids, mask = torch.full((len(rows), T), pad), torch.zeros(len(rows), T, dtype=torch.bool)
    for i, row in enumerate(rows):
        here = slice(T - len(row), T) if left else slice(0, len(row))
        ids[i, here], mask[i, here] = torch.tensor(row), True
    return ids, mask
