"""Conversations rendered by a chat template, as token ids of which the answers are learned.

The learned tokens are found turn by turn: the conversation is rendered up to each question, and again with the answer; the
difference is what the model has to write. Prompts and answers are tokenised separately, so a prompt has exactly the same tokens
when the model is asked as in training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

from diptych.core.errors import DiptychError
from diptych.core.sample import IMAGE, Turn
from diptych.data.conversations.turns import Mistake

IMAGE_ID = -1  # in place of a token id: an image token goes here
PLAIN = (  # for a language model without a template of its own
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}user: {{ m.content }}\n{% elif m.role == 'assistant' %}"
    "assistant: {{ m.content }}{{ eos_token }}\n{% else %}{{ m.content }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@dataclass
class Document:
    """A conversation as tokens; each image is a run of ``IMAGE_ID``."""

    ids: list[int]
    learned: list[bool]  # parallel to ids
    images: int  # how many of its images it shows
    cut: int = 0  # tokens that did not fit

    def __len__(self) -> int:
        return len(self.ids)


class Chat:
    """A tokenizer's chat template, or the plain one.

    tokenizer: an ``LMTokenizer``; tokens: the number of tokens of an image; room: the most tokens of a conversation; too_long:
    ``cut`` (never within an image) or ``refuse``; identifiers: words that say the task, before a user's words, by these words; ""
    for all others (MiniGPT-v2); count: how many tokens a picture has, if that depends on the picture: ``tokens`` is then 1, and
    conversations are ``expanded``. Raises DiptychError for a template that cannot be used at all, ``Mistake`` for a conversation
    that cannot.
    """

    def __init__(
        self,
        tokenizer: Any,
        tokens: int,
        room: int = 512,
        too_long: str = "cut",
        identifiers: Mapping[str, str] = MappingProxyType({}),
        count: Callable[[Any], int] | None = None,
    ):
        self.count = count
        self.identifiers = dict(identifiers)
        self.tokenizer, self.tokens, self.room, self.too_long = tokenizer, tokens, room, too_long
        self.template = tokenizer.template or PLAIN
        plain = {"bos_token": tokenizer.token(tokenizer.bos), "eos_token": tokenizer.token(tokenizer.eos)}
        self.specials = {**plain, **tokenizer.specials}
        self.as_parts = False
        probe = [Turn("user", "one"), Turn("assistant", "two")]
        try:
            if "one" not in self._written(probe):  # a template that wants lists of parts
                self.as_parts = True
            if "one" not in self._written(probe) or "two" not in self._written(probe):
                raise Mistake("it does not write the content of the turns")
        except Mistake as mistake:
            raise DiptychError(f"the language model's chat template cannot be used: {mistake}") from None

    @cached_property
    def writes_system(self) -> bool:
        """Whether the template has a place for a system turn. (Gemma's refuses one, others leave it out.)"""
        try:
            return "three" in self._written([Turn("system", "three"), Turn("user", "one"), Turn("assistant", "two")])
        except Mistake:
            return False

    @cached_property
    def end(self) -> str:
        """The text that follows an answer."""
        return self._written([Turn("user", "one"), Turn("assistant", "two")]).rpartition("two")[2]

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        (after,) = self.tokenizer.pieces([self.end.strip() or self.end])
        return tuple({self.tokenizer.eos, *after}) if len(after) == 1 else (self.tokenizer.eos,)

    @cached_property
    def stop(self) -> tuple[str, ...]:
        """The string that ends an answer, if it is not a single token."""
        return (self.end.strip() or self.end,) if self.end and len(self.ends) == 1 and self.end.strip() != self._eos else ()

    @property
    def _eos(self) -> str:
        eos: str = self.specials["eos_token"]
        return eos

    def _written(self, turns: Sequence[Turn], ask: bool = False) -> str:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        def content(text: str) -> Any:
            """A turn's text in the form that the template takes."""
            return [{"type": "text", "text": text}] if self.as_parts else text

        messages = [{"role": t.role, "content": content(t.text)} for t in turns]
        try:
            rendered: Any = render_jinja_template(
                conversations=[messages], chat_template=self.template, add_generation_prompt=ask, **self.specials
            )
        except TemplateError as error:
            raise Mistake(f"the chat template refuses it: {error}") from None
        return str(rendered[0][0])

    def identified(self, turn: Turn) -> Turn:
        """A user's turn with the identifier of its task behind the images, unless it begins with one: ``[``."""
        if turn.role != "user" or not self.identifiers:
            return turn
        words = turn.text
        while words.startswith((IMAGE, "\n")):
            words = words.removeprefix(IMAGE).removeprefix("\n")
        mark = self.identifiers.get(words.strip(), self.identifiers.get("", ""))
        if not mark or words.startswith("["):
            return turn
        return Turn(turn.role, f"{turn.text[: len(turn.text) - len(words)]}{mark} {words}")

    def fitted(self, turns: Sequence[Turn]) -> list[Turn]:
        """The turns, with the identifiers of tasks, and a system turn moved to the start of the first question if the template has
        no place for it.
        """
        turns = [self.identified(turn) for turn in turns]
        return turns if turns[0].role != "system" or self.writes_system else without_system(turns)

    def words(self) -> list[str]:
        """What the template itself writes."""
        turns = self.fitted([Turn("system", "three"), Turn("user", "one"), Turn("assistant", "two")])
        return [self._written(turns), self._written(turns[:-1], ask=True)]

    def spans(self, turns: Sequence[Turn], ask: bool = False) -> tuple[str, list[tuple[int, int]]]:
        """The whole as text, and the start and end of each answer. The end mark of an answer is part of it, line ends after it are
        not.
        """
        turns = self.fitted(turns)
        return answer_spans(self._written, turns, ask)

    def document(self, turns: Sequence[Turn], ask: bool = False) -> Document:
        """A whole conversation, of any length. ask: end it where an answer is to be written."""
        whole, spans = self.spans(turns, ask)
        pieces: list[tuple[str, bool]] = []
        at = 0
        for start, stop in spans:
            pieces += [(whole[at:start], False), (whole[start:stop], True)]
            at = stop
        pieces.append((whole[at:], False))
        split = [(part, learned, k > 0) for text, learned in pieces for k, part in enumerate(text.split(IMAGE))]
        ids: list[int] = []
        learned: list[bool] = []
        images = 0
        for tokens, (_, learn, shown) in zip(self.tokenizer.pieces([part for part, _, _ in split]), split, strict=True):
            run = [IMAGE_ID] * self.tokens if shown else []
            images += shown
            ids += [*run, *tokens]
            learned += [False] * len(run) + [learn] * len(tokens)
        return Document(ids, learned, images)

    def lesson(self, turns: Sequence[Turn], pictures: Sequence[Any] = ()) -> Document:
        """A conversation to learn from: at most ``room`` tokens of it, some of them learned. pictures: those that it shows, where
        their numbers of tokens differ.
        """
        document = self.document(turns)
        counts = [self.count(picture) for picture in pictures[: document.images]] if self.count else []
        document = expanded(document, counts) if counts else document
        if len(document) > self.room:
            if self.too_long == "refuse":
                raise Mistake(
                    f"{len(document)} tokens, longer than the context of {self.room}; "
                    "raise data.conversations.max_length, or cut (data.conversations.too_long: cut)"
                )
            document = cut(document, self.room, counts or [self.tokens] * document.images)
        if not any(document.learned[1:]):
            raise Mistake(f"no learned token at all: it has no answer within {self.room} tokens, and its loss would be exactly 0")
        return document


def cut(document: Document, room: int, tokens: Sequence[int]) -> Document:
    """The first ``room`` tokens; an image that would be cut is left out, with all that follows. tokens: of each image."""
    end, shown, at = min(room, len(document)), 0, 0
    for count in tokens:
        while at < end and document.ids[at] != IMAGE_ID:
            at += 1
        if at >= end:
            break
        if at + count > end:
            end = at
            break
        at, shown = at + count, shown + 1
    return Document(document.ids[:end], document.learned[:end], shown, len(document) - end)


def expanded(document: Document, counts: Iterable[int]) -> Document:
    """The conversation with ``counts`` places for its images instead of one each."""
    ids, learned, left = [], [], iter(counts)
    for i, learn in zip(document.ids, document.learned, strict=True):
        n = next(left) if i == IMAGE_ID else 1
        ids += [i] * n
        learned += [learn] * n
    return Document(ids, learned, document.images, document.cut)


def without_system(turns: Sequence[Turn]) -> list[Turn]:
    """The turns with the text of the system turn at the start of the first question. Mistake if there is none."""
    if len(turns) < 2:
        raise Mistake("a system turn alone")
    return [Turn(turns[1].role, f"{turns[0].text}\n\n{turns[1].text}"), *turns[2:]]


def answer_spans(
    written: Callable[[Sequence[Turn], bool], str], turns: Sequence[Turn], ask: bool = False, line_ends: bool = False
) -> tuple[str, list[tuple[int, int]]]:
    """The whole as text, and the start and end of each answer in it.

    written(turns, ask): the turns by a chat template; ask: up to where an answer is to be written. The end mark of an answer is
    part of it; line_ends: the line ends after it too. Mistake for a template that rewrites earlier turns.
    """
    whole = written(turns, ask)
    result = []
    for i, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        before, after = written(turns[:i], True), written(turns[: i + 1], False)
        for part, longer in ((before, after), (after, whole)):
            if not longer.startswith(part):
                at = next((k for k, (a, b) in enumerate(zip(part, longer, strict=False)) if a != b), min(len(part), len(longer)))
                raise Mistake(
                    f"template mismatch at turn {i + 1}: the text rendered up to there is not the beginning of the whole: "
                    f"{part[max(at - 20, 0) : at + 20]!r} against {longer[max(at - 20, 0) : at + 20]!r}; use a template "
                    "that only appends"
                )
        bare = after.rstrip()
        ended = len(bare) > len(before) and not bare.endswith(turn.text.rstrip())
        kept = after.rstrip(" \t") if line_ends else bare  # a space may be one token with the words that follow it
        result.append((len(before), len(kept) if ended else len(after)))
    return whole, result
