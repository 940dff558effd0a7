"""The source of ``scenes:text``."""

from __future__ import annotations

import hashlib
from random import Random
from typing import Any

from diptych.core.errors import DiptychError, nearest
from diptych.core.sample import Captions, Conversation, Region, Sample
from diptych.data.scenes.drawn import Drawn
from diptych.data.scenes.texts import language
from diptych.data.scenes.texts.sheet import Sheet, check, draw_sheet, is_held_out, paint, words_of
from diptych.data.scenes.world import World
from diptych.data.source import Group

FORMAT = 1  # counts up when the same address gives other pictures or texts
SKILLS = ("word", "digit", "binding")
_SHEETS, _GROUPS = 31, 32  # streams of seeds of their own


class TextScenes(Drawn):
    """Pictures with print, drawn on demand; ``source[i]`` depends on the world's options and i alone.

    Each word is a region with the word as phrase. Extra: ``words`` (``sheet.paint``), ``boxes`` of the labelled things, ``labels``,
    ``questions`` with the height of the print that they are about. Raises DiptychError if options do not fit together.
    """

    def __init__(self, world: World, address: str = "scenes:text"):
        super().__init__(world, address)
        if problem := check(world):
            raise DiptychError(f"'{address}': {problem}")
        self.skills = SKILLS if world.signs > 1 else SKILLS[:2]  # binding needs two signs

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields that samples may have."""
        asks = self.world.ask or self.world.transcribe
        return ("image", "text", "negatives", "regions", *(("turns",) if asks else ()))

    def fingerprint(self) -> str:
        """A hash of the world's options and of all that the pixels depend on."""
        return hashlib.sha256(f"text {FORMAT} {self.world.fingerprint()}".encode()).hexdigest()[:16]

    def graph(self, index: int) -> Sheet:
        """The truth of one picture, which is not drawn."""
        return draw_sheet(self.world, self._seed(_SHEETS, index))

    def captions(self, index: int) -> list[str]:
        """All texts of one sample, without drawing it."""
        sheet = self.graph(self._checked(index))
        texts = language.captions(sheet, self.world)[0]
        return [*texts, *(turn.text for turn in self._turns(sheet, texts[0]))]

    def _turns(self, sheet: Sheet, caption: str) -> list[Any]:
        if not (self.world.ask or self.world.transcribe):
            return []
        return language.conversation(sheet, language.questions(sheet, self.world), caption, self.world)

    def drawn(self, index: int) -> Sample:
        """The sample at ``index``, from 0 on."""
        return self._sample(self.graph(index), f"{self.world.split}/{index}")

    def _sample(self, sheet: Sheet, name: str) -> Sample:
        image, boxes, words = paint(sheet, self.world.size)
        texts, meanings, negatives = language.captions(sheet, self.world)
        turns = self._turns(sheet, texts[0])
        extra = {
            "words": words,
            "boxes": boxes,
            "labels": sorted(box["concept"] for box in boxes),
            "questions": language.questions(sheet, self.world),
            "sheet": [list(t) for t in sheet.texts],
            "seed": sheet.seed,
        }
        return Sample(
            name,
            extra,
            image=image,
            text=Captions(texts, meanings),
            negatives=negatives,
            turns=Conversation(turns) if turns else None,
            regions=[Region(tuple(map(float, w["box"])), w["text"]) for w in words],  # type: ignore[arg-type]
        )

    def options(self, sample: Sample, asked: dict[str, Any]) -> tuple[list[str], list[str]]:
        """The possible answers to one of the sample's questions, and a caption that says each."""
        from diptych.data.scenes.texts.sheet import Text

        sheet = Sheet(tuple(Text(*t) for t in sample.extra["sheet"]), "", sample.extra["seed"])
        return language.options(sheet, self.world, asked)

    # --- controlled groups ---

    def groups(self, skill: str, n: int) -> list[Group]:
        """n controlled tests: four pictures that differ in one word, in one digit of a number, or two in which two signs exchange
        their words; caption i is true of picture i alone.
        """
        if skill not in self.skills:
            raise DiptychError(f"{self.address}: no skill '{skill}'{nearest(skill, self.skills)}")
        return [self._group(skill, self._seed(_GROUPS, SKILLS.index(skill), i), f"{skill}/{i}") for i in range(n)]

    def _group(self, skill: str, seed: int, name: str) -> Group:
        random, known = Random(seed), words_of(self.world)
        for attempt in range(10_000):
            sheet = draw_sheet(self.world, seed + attempt)
            signs = [k for k, t in enumerate(sheet.texts) if t.on == "sign" and (skill == "digit" or not t.is_number)]
            if len(signs) <= (skill == "binding"):
                continue
            first = sheet.texts[signs[0]]
            if skill == "binding":
                pair = sheet.texts[signs[1]]
                if first.text == pair.text:
                    continue
                changes = [{signs[0]: a, signs[1]: b} for a, b in ((first.text, pair.text), (pair.text, first.text))]
            elif skill == "word":
                changes = [{signs[0]: word} for word in random.sample(known, min(4, len(known)))]
            else:
                digits = list(str(random.randrange(100, 1000)))
                place, others = random.randrange(1, 3), random.sample("0123456789", 4)
                changes = [{signs[0]: "".join([*digits[:place], d, *digits[place + 1 :]])} for d in others]
            sheets = [
                sheet._replace(texts=tuple(t._replace(text=c.get(k, t.text)) for k, t in enumerate(sheet.texts))) for c in changes
            ]
            held = [any(is_held_out(self.world, t.text, t.name) for t in s.texts if t.on == "sign") for s in sheets]
            if self.world.split == "heldout-combinations" or not any(held):
                break
        images = [paint(s, self.world.size)[0] for s in sheets]
        texts = [language.phrase(s.texts[signs[0]]) for s in sheets]
        if skill == "binding":
            texts = [f"{language.phrase(s.texts[signs[0]])} and {language.phrase(s.texts[signs[1]])}" for s in sheets]
        return Group(name, skill, images, texts, {"height": first.height})
