"""``scenes:clips?actions=all``: clips of things that act, drawn on demand, with captions, questions, times and controlled pairs."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from random import Random
from typing import Any

import numpy as np

from diptych.core.errors import DiptychError, nearest
from diptych.core.sample import IMAGE, Captions, Conversation, Label, Sample, Turn, Video
from diptych.data.scenes.actions import language
from diptych.data.scenes.actions.draw import KINDS, SAME_FRAMES, SKILLS, draw_long, draw_script, kinds_of, pair_of, replayed, twins
from diptych.data.scenes.actions.drawing import frames_of
from diptych.data.scenes.actions.script import DIRECTIONS, FPS, FRAMES, Event, Script
from diptych.data.scenes.drawn import Drawn
from diptych.data.scenes.world import World
from diptych.data.source import Group

FORMAT = 1  # counts up when the same address gives other clips or captions
_CLIPS, _GROUPS = 8, 9  # streams of seeds of their own
EVENT_FRAMES = 16  # of one event of a long clip, on average

_TWO_WAYS = ("clockwise", "anticlockwise")
CLASSES = tuple(
    language.label(Event(0, action, detail))
    for action, details in {
        **{"move": tuple(DIRECTIONS), "enter": ("",), "leave": ("",), "turn": _TWO_WAYS, "grow": ("",), "shrink": ("",)},
        **{"recolour": ("",), "jump": ("",), "blink": ("",), "swell": ("",), "flash": ("",), "spin": _TWO_WAYS},
        **{name: ("",) for name in ("overtake", "hit", "pass behind", "pass before", "hide", "emerge", "add", "remove")},
    }.items()
    for detail in details
)


class ActionClips(Drawn):
    """Clips of things that act; ``clips[i]`` depends on the world's options and i alone. Options of the address:

    actions: kinds of clips (``KINDS``), comma-separated, or ``all``; each comes equally often. clip_frames: of each clip, 16, or of
    long clips 16 an event. events: long clips of so many events each, of all sorts, one after the other.

    Samples have ``video``, ``text``, ``negatives`` (the same words of a clip with the same frames in another order, where there is
    one, else of a clip that differs in one thing), ``label`` where there is one event (its action), and ``turns`` if the world
    asks. Extra: ``graph`` (``Script.as_dict``), ``events`` ([{text, start, end}], in seconds), ``tracks`` (each thing's phrase and
    its boxes), ``questions``, ``possible``. Clips are played backwards as often as forwards.
    """

    def __init__(self, world: World, address: str = "scenes:clips?actions=all"):
        super().__init__(world, address)
        self.kinds = kinds_of(world.actions)
        self.frames = world.clip_frames or (EVENT_FRAMES * world.events if world.events else FRAMES)
        if world.events and self.frames < 8 * world.events:
            raise DiptychError(
                f"{address}: {world.events} events need at least {8 * world.events} frames: clip_frames={8 * world.events}"
            )

    @property
    def skills(self) -> tuple[str, ...]:
        """What pairs of clips differ in. The frames of those in ``SAME_FRAMES`` are the same, in another order."""
        return SKILLS

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields that samples may have."""
        return ("video", "text", "negatives", "label", *(("turns",) if self.world.ask else ()))

    @property
    def classes(self) -> list[str]:
        """What labels are of: the actions."""
        return list(CLASSES)

    @property
    def class_texts(self) -> list[str]:
        """Each action as captions write it: "moves left"."""
        return [language.third_person(name) for name in CLASSES]

    def fingerprint(self) -> str:
        """A hash of the world's options and of all that the pixels depend on."""
        return hashlib.sha256(f"actions {FORMAT} {self.world.fingerprint()}".encode()).hexdigest()[:16]

    def graph(self, index: int) -> Script:
        """The truth of one clip."""
        seed = self._seed(_CLIPS, index)
        if self.world.events:
            return draw_long(self.world, seed, self.frames, self.world.events)
        block, place = divmod(index, len(self.kinds))
        kind = self.kinds[_shuffled(self._seed(_CLIPS, -1 - block), len(self.kinds))[place]]
        script = draw_script(self.world, seed, kind, self.frames)
        turned = Random(seed + 8).random() < 0.5
        if not turned:
            return script
        if kind == "physics" and (pairs := twins(script, self.world, Random(seed + 9))):
            return pairs[0][1]
        return replayed(script) or script

    def captions(self, index: int) -> list[str]:
        """All texts of one clip, without drawing it."""
        script = self.graph(self._checked(index))
        told = texts_of(script, self.world)[0]
        return told + (
            [t.text for t in _conversation(script, language.questions(script), self.world.ask)] if self.world.ask else []
        )

    def meaning(self, index: int) -> str:
        """What a clip shows, in one canonical form, without drawing it."""
        return language.meaning(self.graph(self._checked(index)), speed=False)

    def groups(self, skill: str, n: int) -> list[Group]:
        """n pairs of clips, each with its caption in the same wording, that differ in one of ``skills`` alone. Extra: ``graphs``,
        and ``same_frames``, whether both show the same frames.
        """
        if skill not in SKILLS:
            raise DiptychError(f"scenes:clips: no skill '{skill}'{nearest(skill, SKILLS)}")
        from diptych.data.clips import clip_array

        result = []
        for i in range(n):
            seed = self._seed(_GROUPS, SKILLS.index(skill), i)
            pair, name = pair_of(self.world, skill, seed, self.world.clip_frames or FRAMES), f"{skill}/{i}"
            wordings = range(min(language.styles(script) for script in pair))  # those of states do not tell speeds
            telling = [k for k in wordings if language.describe(pair[0], k) != language.describe(pair[1], k)]
            style = telling[Random(seed + 4).randrange(len(telling))]
            videos = [clip_array(video_of(frames_of(script, self.world.size)[0]), name) for script in pair]
            known = {"graphs": [script.as_dict() for script in pair], "same_frames": skill in SAME_FRAMES}
            result.append(Group(name, skill, list(videos), [language.describe(script, style) for script in pair], known))
        return result

    def drawn(self, index: int) -> Sample:
        """The sample of a number from 0 on."""
        return self.sample(self.graph(index), f"{self.world.split}/{index}")

    def sample(self, script: Script, name: str) -> Sample:
        """The sample of a script."""
        frames, boxes = frames_of(script, self.world.size)
        texts, meanings, negatives = texts_of(script, self.world)
        asked = language.questions(script)
        extra: dict[str, Any] = {"graph": script.as_dict(), "events": language.timed(script), "questions": asked}
        extra["tracks"] = [{"phrase": language.phrase(t), "boxes": row} for t, row in zip(script.things, boxes, strict=True)]
        extra["possible"] = script.possible
        one = language.label(script.events[0]) if len(script.events) == 1 and not script.physics else ""
        video = video_of(frames)
        turns = _conversation(script, asked, self.world.ask) if self.world.ask else []
        return Sample(
            name,
            extra,
            video=video,
            text=Captions(texts, meanings),
            negatives=negatives,
            label=Label(CLASSES.index(one), one) if one else None,
            turns=Conversation(turns, video.frames) if turns else None,
        )


def video_of(frames: np.ndarray) -> Video:
    """Frames [F, H, W, 3] with their times."""
    return Video(list(frames), [i / FPS for i in range(len(frames))])


@lru_cache(maxsize=64)
def _shuffled(seed: int, n: int) -> list[int]:
    return Random(seed).sample(range(n), n)


def texts_of(script: Script, world: World) -> tuple[list[str], list[str], list[str]]:
    """Captions of a clip in different wordings, as many as the world has at most, the meaning of each, and for each a false one in
    the same words.
    """
    random = Random(script.seed + 1)
    wordings = language.styles(script)
    start = random.randrange(wordings)
    others = [twin for _, twin in twins(script, world, random)]
    told, facts, negatives = [], [], []
    for number in range(min(world.full, wordings)):
        style = (start + number) % wordings
        told.append(language.describe(script, style))
        facts.append(language.meaning(script, style))
        # a false caption in the same words: speed is not told of states, and other actions have no states
        fitting = [o for o in others if style < language.styles(o) and language.meaning(o, style) != facts[-1]]
        wrong = fitting[0 if random.random() < 0.7 else random.randrange(len(fitting))] if fitting else None
        negatives.append("" if wrong is None else language.describe(wrong, style))
    return told, facts, negatives


def _conversation(script: Script, asked: list[dict[str, str]], most: int) -> list[Turn]:
    """Some of a clip's questions with their answers, at most ``most``; all frames come before the first."""
    random = Random(script.seed + 5)
    chosen = random.sample(asked, min(most, len(asked)))
    turns = [Turn(role, q[key]) for q in chosen for role, key in (("user", "question"), ("assistant", "answer"))]
    return [Turn("user", f"{IMAGE * script.frames}\n{turns[0].text}"), *turns[1:]] if turns else []


__all__ = ["CLASSES", "KINDS", "SAME_FRAMES", "SKILLS", "ActionClips"]
