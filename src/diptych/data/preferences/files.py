"""Pairs of answers in a file: one JSON object a line, with images, a prompt, the chosen and the rejected answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from diptych.core.errors import DiptychError, counted, nearest
from diptych.core.sample import IMAGE, Sample, Turn
from diptych.data.conversations.turns import Mistake, check_images, images_in, turns_of
from diptych.data.preferences import Preference, Span
from diptych.data.preferences.spans import differing
from diptych.data.source import Problem
from diptych.data.sources.base import Entry, Names, image_of
from diptych.data.sources.llava import Conversations
from diptych.data.sources.table import JSONL, json_object
from diptych.data.storage import files

KEYS = ("id", "image", "images", "prompt", "chosen", "rejected", "spans", "facts")
NEEDED = ("prompt", "chosen", "rejected")


class PreferenceFile(Conversations):
    """A .jsonl of ``{image, prompt, chosen, rejected, spans?, facts?, id?}``.

    image, images: a path or several, relative to ``?images=DIR``, else to the file. prompt: the question; ``<image>`` marks the
    place of an image, and without a mark the images stand before it; or a list of messages that ends with the user's. chosen,
    rejected: the answers, texts or lists of one message. spans: ``[[first character, one after the last], …]`` of what is wrong in
    the rejected answer (default: the words in which it differs). facts: true statements about the images, a text or several.

    A key that is not known is refused. Lines that cannot be used are left out and listed in ``problems``.
    """

    looked_for = "pairs of answers"

    def __init__(self, place: str, *, images: str | None = None):
        super().__init__(place, images=images, broken="skip")

    def entries(self) -> Iterator[Entry]:
        """Every pair of the files that can be used."""
        urls, names = files.matching(self.place), Names()
        for url, file in zip(urls, files.relative(urls), strict=True):
            if not url.lower().endswith(JSONL):
                raise DiptychError(f"{url}: expected a .jsonl with a pair of answers a line: {{image, prompt, chosen, rejected}}")
            here = files.directory_of(url, self.images)
            for number, line in enumerate(files.read_text(url).split("\n"), 1):
                if not line.strip():
                    continue
                place = f"{file}:{number}"
                try:
                    row = json_object(line, place)
                except DiptychError as error:
                    self.problems.append(Problem(place, str(error).removeprefix(f"{place}: ")))
                    continue
                check_keys(row, place)
                name = names.new(str(row.get("id") or "") or place)
                try:
                    yield self._entry(name, row, here)
                except ValueError as mistake:
                    self.problems.append(Problem(name if name == place else f"{name} ({place})", str(mistake)))

    def _entry(self, name: str, row: dict[str, Any], here: str) -> Entry:
        """One pair. ValueError for one that cannot be used."""
        for key in NEEDED:
            if not row.get(key):
                raise Mistake(f"no {key}")
        chosen, rejected = answer_in(row["chosen"], "chosen"), answer_in(row["rejected"], "rejected")
        if chosen == rejected:
            raise Mistake("chosen and rejected are the same answer")
        listed = row.get("images") if row.get("images") is not None else row.get("image")
        given = listed if isinstance(listed, (list, tuple)) else [] if listed in (None, "") else [listed]
        inline = images_in(row["prompt"]) if isinstance(row["prompt"], list) else []
        if given and inline:
            raise Mistake("images twice: in the prompt and next to it; keep one of the two")
        where = tuple(image_of(image, here) for image in given or inline)
        asked = prompt_in(row["prompt"], len(where))
        check_images(asked, len(where))
        facts = row.get("facts") or []
        facts = [facts] if isinstance(facts, str) else facts
        if not isinstance(facts, list) or not all(isinstance(fact, str) for fact in facts):
            raise Mistake("facts: expected a text or a list of texts")
        spans = spans_in(row.get("spans"), rejected)
        right, wrong = differing(chosen, rejected)
        pair = Preference(chosen, rejected, wrong if spans is None else spans, right, "", tuple(facts))
        turns = [list(turn) for turn in (*asked, Turn("assistant", chosen))]
        return Entry(name, where, [chosen], {"preference": pair.plain(), "turns": turns})

    def captions(self, index: int) -> list[str]:
        """All texts of a pair, from which a tokenizer learns."""
        return [*super().captions(index), self._entries[index].extra["preference"]["rejected"]]

    def rejected(self, index: int) -> str:
        """The rejected answer of a pair, without reading its images."""
        return str(self._entries[index].extra["preference"]["rejected"])

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        if len(sample.images) > 1:  # a sample's own image is the only one; several are those of its conversation
            return sample.with_(image=None)
        return sample


def check_keys(row: dict[str, Any], place: str) -> None:
    """DiptychError for a key that is not known."""
    for key in row:
        if key not in KEYS:
            raise DiptychError(f"{place}: unknown key '{key}'{nearest(key, KEYS)}; known: {', '.join(KEYS)}")


def answer_in(given: Any, what: str) -> str:
    """The text of an answer: itself, or the one message of a list. ``Mistake`` for anything else."""
    if isinstance(given, str):
        return given
    if isinstance(given, list) and len(given) == 1 and isinstance(given[0], dict) and given[0].get("role") == "assistant":
        content = given[0].get("content")
        if isinstance(content, list):
            content = "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
        if isinstance(content, str) and content:
            return content
    raise Mistake(f"{what}: expected a text, or a list of one message of the assistant")


def prompt_in(given: Any, images: int) -> list[Turn]:
    """The turns before the answer; images without a mark stand before the first question's words. ``Mistake`` if they do not end
    with the user's.
    """
    if isinstance(given, str):
        turns = [Turn("user", given)]
    else:
        turns = turns_of(given)
    if turns[-1].role != "user":
        raise Mistake("prompt: it ends with the assistant's turn; expected the user's question")
    if images and not any(IMAGE in turn.text for turn in turns):
        first = next(i for i, turn in enumerate(turns) if turn.role == "user")
        turns[first] = Turn("user", f"{IMAGE}\n" * images + turns[first].text)
    return turns


def spans_in(given: Any, text: str) -> tuple[Span, ...] | None:
    """The spans that a row gives; None if it gives none. ``Mistake`` for one that is not within the text."""
    if given is None:
        return None
    if not isinstance(given, list):
        raise Mistake("spans: expected a list of [first character, one after the last]")
    result = []
    for span in given:
        fits = isinstance(span, list) and len(span) == 2 and all(isinstance(i, int) and not isinstance(i, bool) for i in span)
        if not fits or not 0 <= span[0] < span[1] <= len(text):
            raise Mistake(f"spans: {span} is not within the rejected answer's {counted(len(text), 'character')}")
        result.append((span[0], span[1]))
    return tuple(result)
