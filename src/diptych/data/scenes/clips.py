"""``scenes:clips``: clips in which things move, with captions that say which, how and in which order."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from random import Random
from typing import Any

from diptych.core.errors import DiptychError, nearest
from diptych.core.sample import IMAGE, Captions, Conversation, Label, Sample, Turn, Video
from diptych.data.scenes.backgrounds import KINDS
from diptych.data.scenes.concepts import by_name
from diptych.data.scenes.drawn import Drawn
from diptych.data.scenes.graph import Graph as Scene
from diptych.data.scenes.graph import draw_things, is_held_out, other
from diptych.data.scenes.language import phrase
from diptych.data.scenes.motion import FPS, FRAMES, INVERSE, MOTIONS, SIDES, Clip, Event, frames_of
from diptych.data.scenes.world import World
from diptych.data.source import Group

FORMAT = 1  # counts up when the same address gives other clips or captions
# One thing that acts, one that acts next to another that does not, one that acts twice, two that act in turn.
SKILLS = ("motion", "side", "order", "who")  # what groups of clips differ in
FORMS = ("one", "who", "order", "pair")
_CLIPS = 5  # a stream of seeds of its own
_BLOCK = len(MOTIONS) ** 2  # clips in which every pair of motions comes once
_VERBS = {
    **{m: (f"move {m}", f"moves {m}") for m in ("left", "right", "up", "down")},
    **{"grow": ("grow", "grows"), "shrink": ("shrink", "shrinks")},
}
_PLACES = {
    "enter": {side: f"from the {side}" for side in SIDES},
    "leave": {"left": "to the left", "right": "to the right", "top": "at the top", "bottom": "at the bottom"},
}
_TEXTS = {
    "one": ("{a} {v}", "a clip of {a} that {v}", "there is {a} that {v}"),
    "who": ("{a} {v} while {b} stays still", "{b} stays still while {a} {v}", "{a} {v}, {b} does not move"),
    "order": ("first {a} {v}, then it {w}", "{a} {v} and then {w}", "{a} {w} after it {v}", "{a} {v} before it {w}"),
    "pair": ("first {a} {v}, then {b} {w}", "{a} {v} before {b} {w}", "{b} {w} after {a} {v}"),
}


class Clips(Drawn):
    """Clips of ``FRAMES`` frames, ``FPS`` a second, drawn on demand; ``clips[i]`` depends on the world's options and i alone.

    Samples have ``video``, ``text``, ``negatives`` (a motion inverted, the order or the things exchanged), ``turns`` if the world
    asks, and, where there is one event, the motion as ``label``. Extra: ``graph`` (``Clip.as_dict``), ``tracks`` (each thing's
    phrase and its box in each frame, in pixels), ``questions``. Every 64 clips show every first motion eight times.
    """

    skills: tuple[str, ...] = SKILLS

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields that samples may have."""
        return ("video", "text", "negatives", "label", *(("turns",) if self.world.ask else ()))

    @property
    def classes(self) -> list[str]:
        """What labels are of: the motions."""
        return [_base(Event(0, motion)) for motion in MOTIONS]

    def fingerprint(self) -> str:
        """A hash of the world's options and of all that the pixels depend on."""
        return hashlib.sha256(f"clips {FORMAT} {self.world.fingerprint()}".encode()).hexdigest()[:16]

    def graph(self, index: int) -> Clip:
        """The truth of one clip."""
        block, place = divmod(index, _BLOCK)
        first, second = divmod(_pairs(self._seed(_CLIPS, -1 - block))[place], len(MOTIONS))
        return draw_clip(self.world, self._seed(_CLIPS, index), MOTIONS[first], MOTIONS[second])

    def captions(self, index: int) -> list[str]:
        """All texts of one clip, without drawing it."""
        clip = self.graph(self._checked(index))
        texts = captions(clip, self.world.full)[0]
        return texts + ([t.text for t in conversation(clip, questions(clip), self.world.ask)] if self.world.ask else [])

    def meaning(self, index: int) -> str:
        """What a clip shows, in one canonical form, without drawing it."""
        return meaning(self.graph(self._checked(index)))

    def groups(self, skill: str, n: int) -> list[Group]:
        """n pairs of clips with a caption each, in the same words, that differ in one of ``SKILLS`` alone."""
        if skill not in SKILLS:
            raise DiptychError(f"scenes:clips: no skill '{skill}'{nearest(skill, SKILLS)}")
        from diptych.data.clips import clip_array

        result: list[Group] = []
        index = 0
        while len(result) < n:
            clip, index = self.graph(index), index + 1
            wrong = dict(falsehoods(clip, Random(clip.seed + 6))).get(skill)
            if wrong is not None:
                pair, style = (clip, wrong), clip.seed % 12  # a multiple of every number of wordings
                name = f"{skill}/{len(result)}"
                videos = [Video(frames_of(c, self.world.size)[0], [i / FPS for i in range(FRAMES)]) for c in pair]
                result.append(Group(name, skill, [clip_array(v, name) for v in videos], [describe(c, style) for c in pair]))
        return result

    def drawn(self, index: int) -> Sample:
        """The sample of a number from 0 on."""
        return self.sample(self.graph(index), f"{self.world.split}/{index}")

    def sample(self, clip: Clip, name: str) -> Sample:
        """The sample of a clip."""
        frames, tracks = frames_of(clip, self.world.size)
        texts, meanings, negatives = captions(clip, self.world.full)
        asked = questions(clip)
        extra: dict[str, Any] = {"graph": clip.as_dict(), "questions": asked}
        extra["tracks"] = [{"phrase": phrase(t), "boxes": boxes} for t, boxes in zip(clip.things, tracks, strict=True)]
        number = MOTIONS.index(clip.events[0].motion)
        turns = conversation(clip, asked, self.world.ask) if self.world.ask else []
        return Sample(
            name,
            extra,
            video=Video(frames, [i / FPS for i in range(FRAMES)]),
            text=Captions(texts, meanings),
            negatives=negatives,
            label=Label(number, self.classes[number]) if len(clip.events) == 1 else None,
            turns=Conversation(turns, frames) if turns else None,
        )


@lru_cache(maxsize=64)
def _pairs(seed: int) -> list[int]:
    return Random(seed).sample(range(_BLOCK), _BLOCK)


def draw_clip(world: World, seed: int, first: str, second: str) -> Clip:
    """A random clip that belongs to the world's split. first, second: its motions; the second is ignored in forms of one event."""
    wanted = world.split == "heldout-combinations"
    random = Random(seed)
    while True:
        clip = _draw(world, random, seed, first, second)
        if any(is_held_out(Scene((things,)), world) for things in clip.things) == wanted:
            return clip


def _draw(world: World, random: Random, seed: int, first: str, second: str) -> Clip:
    form, background = FORMS[random.randrange(len(FORMS))], KINDS[random.randrange(len(KINDS))]
    sides = [SIDES[random.randrange(4)] if motion in ("enter", "leave") else "" for motion in (first, second)]
    things = [draw_things(world, random, 1, world.focus)]
    things.append(draw_things(world, random, 1, taken=things))
    events = (Event(0, first, sides[0]), Event(0 if form == "order" else 1, second, sides[1]))
    clip = Clip(tuple(things), events, background, seed)
    if form == "order" and not clip._replace(things=(things[0],)).possible():
        form = "pair"
        clip = clip._replace(events=(events[0], events[1]._replace(thing=1)))
    if form in ("one", "who"):
        clip = clip._replace(events=events[:1])
    return clip._replace(things=(things[0],)) if form in ("one", "order") else clip


def form_of(clip: Clip) -> str:
    """Which of ``FORMS`` a clip has."""
    if len(clip.things) == 1:
        return "one" if len(clip.events) == 1 else "order"
    return "who" if len(clip.events) == 1 else "pair"


# --- texts ---


def _base(event: Event) -> str:
    """ "move left", "enter from the top"."""
    return (
        _VERBS[event.motion][0] if event.motion in _VERBS else f"{event.motion} {_PLACES[event.motion].get(event.side, '')}".strip()
    )


def _verb(event: Event) -> str:
    """ "moves left", "enters from the top"."""
    return _VERBS[event.motion][1] if event.motion in _VERBS else f"{event.motion}s {_PLACES[event.motion][event.side]}"


def describe(clip: Clip, style: int) -> str:
    """All that a clip shows, in one of the wordings of its form."""
    first, last = clip.events[0], clip.events[-1]
    texts = _TEXTS[form_of(clip)]
    a = phrase(clip.things[first.thing])
    b = phrase(clip.things[1 - first.thing]) if len(clip.things) > 1 else ""
    return texts[style % len(texts)].format(a=a, b=b, v=_verb(first), w=_verb(last))


def meaning(clip: Clip) -> str:
    """The facts, in one canonical form."""
    noted = " > ".join(" ".join([phrase(clip.things[e.thing]), e.motion, e.side]).strip() for e in clip.events)
    still = [phrase(things) for k, things in enumerate(clip.things) if all(e.thing != k for e in clip.events)]
    return " | ".join([noted, *(f"{name} still" for name in still)])


def falsehoods(clip: Clip, random: Random) -> list[tuple[str, Clip]]:
    """Possible clips that differ in one of ``SKILLS``, with its name: a motion inverted, the side where a thing enters or leaves,
    the order of events, who does what.
    """
    result = []
    number = random.randrange(len(clip.events))
    event = clip.events[number]
    changed = [("motion", event._replace(motion=INVERSE[event.motion]))]
    if event.side:
        changed.append(("side", event._replace(side=other(SIDES, random, event.side))))
    result += [(skill, clip._replace(events=(*clip.events[:number], e, *clip.events[number + 1 :]))) for skill, e in changed]
    if len(clip.events) == 2:
        result.append(("order", clip._replace(events=clip.events[::-1])))
    if len(clip.things) == 2:
        result.append(("who", clip._replace(events=tuple(e._replace(thing=1 - e.thing) for e in clip.events))))
    return [(skill, wrong) for skill, wrong in result if wrong.possible()]


def captions(clip: Clip, wanted: int) -> tuple[list[str], list[str], list[str]]:
    """``wanted`` captions of a clip in different wordings, the meaning of each, and for each a false one in the same words."""
    random = Random(clip.seed + 1)
    styles = len(_TEXTS[form_of(clip)])
    start = random.randrange(styles)
    texts, negatives = [], []
    for number in range(min(wanted, styles)):
        wrong = [other_clip for _, other_clip in falsehoods(clip, random)]
        texts.append(describe(clip, start + number))
        negatives.append(describe(wrong[random.randrange(len(wrong))], start + number) if wrong else "")
    return texts, [meaning(clip)] * len(texts), negatives


def questions(clip: Clip) -> list[dict[str, str]]:
    """Questions about a clip with their answers; as many say yes as no."""
    random = Random(clip.seed + 3)
    nouns = [by_name()[things.concept].name for things in clip.things]
    event = clip.events[random.randrange(len(clip.events))]
    noun, inverse = nouns[event.thing], event._replace(motion=INVERSE[event.motion])
    asked = [("motion", f"does the {noun} {_base(event)}?", "yes"), ("motion", f"does the {noun} {_base(inverse)}?", "no")]
    if len(clip.events) == 1:
        asked.append(("what", f"what does the {noun} do?", f"it {_verb(event)}"))
        if len(clip.things) == 2:
            asked.append(("who", "what moves?", f"the {noun}"))
    else:
        for word, one in zip(("first", "last"), clip.events, strict=True):
            asked.append(("order", f"what happens {word}?", f"the {nouns[one.thing]} {_verb(one)}"))
    return [{"question": question, "answer": answer, "kind": kind} for kind, question, answer in asked]


def conversation(clip: Clip, asked: list[dict[str, str]], most: int) -> list[Turn]:
    """Some of a clip's questions with their answers, at most ``most``; all frames come before the first."""
    random = Random(clip.seed + 5)
    chosen = random.sample(asked, min(most, len(asked)))
    turns = [Turn(role, q[key]) for q in chosen for role, key in (("user", "question"), ("assistant", "answer"))]
    return [Turn("user", f"{IMAGE * FRAMES}\n{turns[0].text}"), *turns[1:]]
