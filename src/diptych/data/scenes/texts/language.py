"""Captions, questions and conversations about print."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from diptych.core.sample import Turn
from diptych.data.conversations.turns import DESCRIBE, question
from diptych.data.scenes.concepts import article
from diptych.data.scenes.language import SHORT
from diptych.data.scenes.texts.sheet import Sheet, Text, is_held_out, number, words_of
from diptych.data.scenes.world import World

READ_ALL = "read all words in the picture."
COUNTS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_FRAMES = ("{}", "a picture of {}", "there is {}")
_SAYS = ("that says", "with the text", "reading")
_ASKED = {
    "sign": ("what does the {name} sign say?", "which word is on the {name} sign?", "what is written on the {name} sign?"),
    "number": ("which number is on the {name} sign?", "what does the {name} sign say?", "what is written on the {name} sign?"),
    "label": ("what does the label of the {name} say?", "what is written next to the {name}?"),
    "note": ("what does the small print say?", "what is written at the bottom?"),
}


def phrase(text: Text, says: str = _SAYS[0]) -> str:
    """ "a red sign that says open"."""
    if text.on == "note":
        return f"small print {says} {text.text}"
    return f"{article(text.name)} {'sign' if text.on == 'sign' else 'with a label'} {says} {text.text}"


def meaning(sheet: Sheet) -> str:
    """The same for all captions that say the same."""
    return " + ".join(sorted(phrase(text) for text in sheet.texts))


def captions(sheet: Sheet, world: World) -> tuple[list[str], list[str], list[str]]:
    """Captions that name everything printed, in different words and orders, their meanings, and a wrong version of each."""
    random = Random(sheet.seed + 1)
    wrong = falsified(sheet, world)
    texts, negatives = [], []
    for _ in range(world.full):
        order = random.sample(range(len(sheet.texts)), len(sheet.texts))
        frame, says = _FRAMES[random.randrange(world.frames)], _SAYS[random.randrange(len(_SAYS))]
        texts.append(frame.format(_listed([phrase(sheet.texts[k], says) for k in order])))
        negatives.append(frame.format(_listed([phrase(wrong.texts[k], says) for k in order])))
    return texts, [meaning(sheet)] * len(texts), negatives


def _listed(phrases: Sequence[str]) -> str:
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def falsified(sheet: Sheet, world: World) -> Sheet:
    """The same with two texts exchanged or one replaced by another of the world's words or numbers, so that it is false."""
    random = Random(sheet.seed + 4)
    texts = list(sheet.texts)
    pairs = [
        (i, j)
        for i in range(len(texts))
        for j in range(i)
        if texts[i].text != texts[j].text and "note" not in (texts[i].on, texts[j].on)
    ]
    random.shuffle(pairs)
    if random.random() < 0.5:
        for i, j in pairs:
            texts[i], texts[j] = texts[i]._replace(text=texts[j].text), texts[j]._replace(text=texts[i].text)
            if not _forbidden(world, texts[i], texts[j]):
                return sheet._replace(texts=tuple(texts))
            texts = list(sheet.texts)
    while True:
        k = random.randrange(len(texts))
        changed = texts[k]._replace(text=_other(texts[k], world, random, {t.text for t in texts}))
        if not _forbidden(world, changed):
            return sheet._replace(texts=(*texts[:k], changed, *texts[k + 1 :]))


def _forbidden(world: World, *texts: Text) -> bool:
    """Whether training must not show one of these pairs of word and colour, not even in a wrong caption."""
    held = world.split == "heldout-combinations"
    return not held and any(t.on == "sign" and is_held_out(world, t.text, t.name) for t in texts)


def _other(text: Text, world: World, random: Random, taken: set[str]) -> str:
    """Another text of the same kind; of small print, with its last word exchanged."""
    words = words_of(world)
    before, _, last = text.text.rpartition(" ")
    while True:
        new = number(random) if text.is_number else words[random.randrange(len(words))]
        whole = f"{before} {new}".strip()
        if new != last and whole not in taken:
            return whole


def questions(sheet: Sheet, world: World) -> list[dict[str, Any]]:
    """Every question about the picture with its answer: {question, answer, kind, height}. height: of the print that must be read,
    in pixels; only of questions about one text.

    Of the questions whether a word is there, one is answered by yes and one by no. One asks for a sign of a colour that no sign
    has, one for small print if there is none: the answer says so.
    """
    random = Random(sheet.seed + 3)
    asked: list[dict[str, Any]] = []

    def ask(kind: str, text: str, answer: str, height: int | None = None) -> None:
        """One more question."""
        asked.append({"question": text, "answer": answer, "kind": kind} | ({"height": height} if height else {}))

    signs = [t for t in sheet.texts if t.on == "sign"]
    for t in sheet.texts:
        kind = "number" if t.is_number and t.on == "sign" else t.on
        wordings = _ASKED[kind]
        ask("number" if t.is_number else t.on, wordings[random.randrange(len(wordings))].format(name=t.name), t.text, t.height)
    if len(signs) == 1:
        ask("number" if signs[0].is_number else "sign", "what does the sign say?", signs[0].text, signs[0].height)
    for t in signs:
        if sum(other.text == t.text for other in signs) == 1:
            ask("colour", f"what colour is the sign that says {t.text}?", t.name, t.height)
    shown = [word for t in sheet.texts for word in t.text.split() if not word.isdigit()]
    ask("count", "how many words are there?", COUNTS[len(shown)])
    if shown:
        there = shown[random.randrange(len(shown))]
        height = next(t.height for t in sheet.texts if there in t.text.split())
        absent = [word for word in words_of(world) if word not in shown]
        ask("existence", f"does it say {there} anywhere?", "yes", height)
        if absent:
            ask("existence", f"does it say {absent[random.randrange(len(absent))]} anywhere?", "no")
    missing = [colour for colour in world.palette if colour not in {t.name for t in signs}]
    colour = missing[random.randrange(len(missing))]
    ask("refusal", _ASKED["sign"][random.randrange(3)].format(name=colour), f"there is no {colour} sign")
    if sheet.texts[-1].on != "note" and world.notes:
        ask("refusal", _ASKED["note"][random.randrange(2)], "there is no small print")
    return asked


def conversation(sheet: Sheet, asked: Sequence[dict[str, Any]], caption: str, world: World) -> list[Turn]:
    """At most ``world.ask`` of the questions with their answers, or a request for all words if ``world.transcribe``. A request for
    a description counts as two of the questions, as in other scenes.
    """
    random = Random(sheet.seed + 5)
    everything = (READ_ALL, " ".join(t.text for t in sheet.texts))
    if world.transcribe:
        chosen = [everything]
    else:
        pairs = [(q["question"] + random.choice(("", f" {SHORT}")), q["answer"]) for q in asked]
        more = [(DESCRIBE, caption)] * 2 + [everything]
        chosen = list(dict.fromkeys(random.sample([*pairs, *more], len(pairs) + 3)))[: world.ask]
    turns = [Turn(role, text) for pair in chosen for role, text in zip(("user", "assistant"), pair, strict=True)]
    return [question(turns[0].text), *turns[1:]]


def options(sheet: Sheet, world: World, asked: dict[str, Any], most: int = 4) -> tuple[list[str], list[str]]:
    """The possible answers to a question of ``questions`` in random order, and for each a caption that says the same; none for a
    request that is to be refused.
    """
    random = Random(f"{sheet.seed} {asked['question']}")
    kind, answer = asked["kind"], asked["answer"]
    if kind in ("sign", "label", "number", "note"):
        t = next(t for t in sheet.texts if t.text == answer and (t.name in asked["question"] or "the sign" in asked["question"]))
        others: set[str] = {answer}
        wanted = min(most, len(words_of(world)) if not t.is_number else most)
        while len(others) < wanted:
            others.add(_other(t, world, random, others))
        pairs = [(text, phrase(t._replace(text=text))) for text in sorted(others)]
    elif kind == "colour":
        word = asked["question"].removeprefix("what colour is the sign that says ").rstrip("?")
        colours = [answer, *random.sample([c for c in world.palette if c != answer], min(most, len(world.palette)) - 1)]
        pairs = [(c, f"{article(c)} sign that says {word}") for c in colours]
    elif kind == "existence":
        word = asked["question"].removeprefix("does it say ").removesuffix(" anywhere?")
        pairs = [("yes", f"a picture that says {word}"), ("no", f"a picture without the word {word}")]
    elif kind == "count":
        pairs = [(c, f"a picture with {c} word{'s' * (c != 'one')}") for c in COUNTS[: world.signs + 3]]
    else:
        return [], []
    random.shuffle(pairs)
    return [a for a, _ in pairs], [statement for _, statement in pairs]
