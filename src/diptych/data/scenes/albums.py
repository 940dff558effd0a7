"""``scenes:albums``: documents of several pictures of the same things, with texts that refer to earlier pictures."""

from __future__ import annotations

import hashlib
from random import Random
from typing import Any, NamedTuple

from diptych.core.sample import IMAGE, Captions, Conversation, Document, Sample, Turn
from diptych.data.scenes import language
from diptych.data.scenes.backgrounds import KINDS
from diptych.data.scenes.concepts import by_name
from diptych.data.scenes.drawn import Drawn
from diptych.data.scenes.graph import POSITIONS, Graph, Things, draw_things, is_held_out, other
from diptych.data.scenes.layout import picture
from diptych.data.scenes.world import RELATIONS, World

FORMAT = 1  # counts up when the same address gives other albums or texts
PICTURES = (2, 5)  # in an album, at least and at most
STEPS = ("colour", "count", "position", "join", "part", "again")
_ALBUMS = 6  # a stream of seeds of its own
_ORDINALS = ("first", "second", "third", "fourth", "fifth")
# The place of a second thing that joins the first one, which is the first or the second of a relation.
_BESIDE = {"left": ("to the right of it", "to the left of it"), "above": ("below it", "above it")}
_TOLD = {
    "first": ("here is {first}", "this is {first}", "the album begins with {first}"),
    "colour": ("the same {noun}, now {value}", "now the {noun} {are} {value}", "then the {noun} {turn} {value}"),
    "count": ("now there {has} {only}{value} of them", "then {only}{value} of the same kind"),
    "position": ("the same {noun} in the {value}", "now it is in the {value}"),
    "join": ("{value} comes {beside}", "{beside} is now {value}"),
    "part": ("now the {noun} is alone again", "the {gone} is gone"),
    "again": ("the same as in the {value} picture", "once more what the {value} picture shows"),
}


class Step(NamedTuple):
    """How a picture differs from the earlier ones. what: one of STEPS, or "first"."""

    what: str
    value: str = ""  # a colour, a number, a position, the side of what joins, or the ordinal of an earlier picture


class Album(NamedTuple):
    """The truth of a document: a scene and a step for each picture."""

    graphs: tuple[Graph, ...]
    steps: tuple[Step, ...]
    seed: int = 0


class Albums(Drawn):
    """Documents of two to five pictures with a text before each, drawn on demand; ``albums[i]`` depends on the world's options and
    i alone.

    Texts say what changes from one picture to the next ("now it is blue", "the same as in the first picture again"), so they are
    true in this order only. Samples have ``document``, ``text`` (all texts in one), ``negatives`` (with one statement wrong), and
    ``turns`` if the world asks. Extra: ``graphs``, ``steps``, ``questions``.
    """

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields that samples may have."""
        return ("document", "text", "negatives", *(("turns",) if self.world.ask else ()))

    def fingerprint(self) -> str:
        """A hash of the world's options and of all that the pixels depend on."""
        return hashlib.sha256(f"albums {FORMAT} {self.world.fingerprint()}".encode()).hexdigest()[:16]

    def graph(self, index: int) -> Album:
        """The truth of one album."""
        return draw_album(self.world, self._seed(_ALBUMS, index))

    def captions(self, index: int) -> list[str]:
        """All texts of one album, without drawing it."""
        album = self.graph(self._checked(index))
        turns = conversation(album, questions(album), self.world.ask) if self.world.ask else []
        return [" ".join(texts(album)), *(turn.text for turn in turns)]

    def drawn(self, index: int) -> Sample:
        """The sample of a number from 0 on."""
        album = self.graph(index)
        pictures = [picture(graph, self.world.size)[0] for graph in album.graphs]
        noted = texts(album)
        asked = questions(album)
        extra: dict[str, Any] = {
            "graphs": [graph.as_dict() for graph in album.graphs],
            "steps": [list(step) for step in album.steps],
            "questions": asked,
        }
        fact = " ; ".join(map(language.meaning, album.graphs))
        turns = conversation(album, asked, self.world.ask) if self.world.ask else []
        return Sample(
            f"{self.world.split}/{index}",
            extra,
            document=Document([part for pair in zip(noted, pictures, strict=True) for part in pair]),
            text=Captions([" ".join(noted)], [fact]),
            negatives=[falsehood(album, self.world)],
            turns=Conversation(turns, pictures) if turns else None,
        )


def draw_album(world: World, seed: int) -> Album:
    """A random album that belongs to the world's split: some picture of it is held out, or none."""
    random = Random(seed)
    wanted = world.split == "heldout-combinations"
    while True:
        album = _draw(world, random, seed)
        if any(is_held_out(graph, world) for graph in album.graphs) == wanted:
            return album


def _draw(world: World, random: Random, seed: int) -> Album:
    things = draw_things(world, random, random.choice((1, 1, 2)), world.focus)
    graphs = [Graph((things,), background=KINDS[random.randrange(len(KINDS))], seed=seed)]
    steps = [Step("first")]
    for _ in range(random.randint(*PICTURES) - 1):
        graph, step = _next(graphs, world, random)
        graphs.append(graph)
        steps.append(step)
    return Album(tuple(graphs), tuple(steps), seed)


def _next(graphs: list[Graph], world: World, random: Random) -> tuple[Graph, Step]:
    """A picture that differs from the last one, and how. The texts are about the concept of the first picture throughout."""
    last, concept = graphs[-1], graphs[0].things[0].concept
    main, alone = main_of(last, concept), len(last.things) == 1
    while True:
        what = STEPS[random.randrange(len(STEPS))]
        if what == "colour":
            changed = main._replace(colour=other(world.palette, random, main.colour))
            return last._replace(things=tuple(changed if t is main else t for t in last.things)), Step(what, changed.colour)
        if what == "count" and alone:
            count = 1 + (main.count + random.randrange(world.max_objects - 1)) % world.max_objects
            return last._replace(things=(main._replace(count=count),), position=""), Step(what, language.NUMBERS[count])
        if what == "position" and alone and main.count == 1:
            position = other(POSITIONS, random, last.position)
            return last._replace(position=position), Step(what, position)
        if what == "join" and alone and main.count == 1:
            joined, relation, second = (
                draw_things(world, random, 1, taken=(main,)),
                RELATIONS[random.randrange(2)],
                random.randrange(2),
            )
            pair = (joined, main) if second else (main, joined)
            return last._replace(things=pair, relation=relation, position=""), Step(what, _BESIDE[relation][second])
        if what == "part" and not alone:
            return last._replace(things=(main,), relation=""), Step(what)
        if what == "again":
            earlier = [k for k, graph in enumerate(graphs[:-1]) if language.meaning(graph) != language.meaning(last)]
            if earlier:
                k = earlier[random.randrange(len(earlier))]
                return graphs[k], Step(what, _ORDINALS[k])


def main_of(graph: Graph, concept: str) -> Things:
    """The group of a scene with this concept."""
    return next(things for things in graph.things if things.concept == concept)


# --- texts ---


def sentence(album: Album, k: int, step: Step, style: int) -> str:
    """The text before a picture. step: the statement in it, which is true if it is ``album.steps[k]``."""
    graph, concept = album.graphs[k], album.graphs[0].things[0].concept
    main = main_of(graph, concept)
    noun = by_name()[concept].name if main.count == 1 else by_name()[concept].plural
    one = main.count == 1
    beside = next((t for t in graph.things if t.concept != concept), None)
    gone = next((t for t in album.graphs[k - 1].things if t.concept != concept), None) if k else None
    words = {
        "noun": noun,
        "value": step.value,
        "are": "is" if one else "are",
        "only": "only " if step.value == "one" else "",
        "has": "is" if step.value == "one" else "are",
        "turn": "turns" if one else "turn",
        "first": language.phrase(main._replace(colour=step.value or main.colour)),
        "beside": language.phrase(beside) if beside else "",
        "gone": by_name()[gone.concept].name if gone else "",
    }
    noted = _TOLD[step.what]
    return noted[style % len(noted)].format(**words) + "."


def _styles(album: Album) -> list[int]:
    random = Random(album.seed + 1)
    return [random.randrange(6) for _ in album.graphs]


def texts(album: Album) -> list[str]:
    """The text before each picture."""
    return [sentence(album, k, step, style) for k, (step, style) in enumerate(zip(album.steps, _styles(album), strict=True))]


def falsehood(album: Album, world: World) -> str:
    """All texts in one, with one statement wrong."""
    random, styles = Random(album.seed + 4), _styles(album)
    facts = list(map(language.meaning, album.graphs))
    wrong: list[tuple[int, Step]] = []
    for k, step in enumerate(album.steps):
        main = main_of(album.graphs[k], album.graphs[0].things[0].concept)
        if step.what == "first" and main.colour:
            wrong.append((k, step._replace(value=other(world.palette, random, main.colour))))
        elif step.what == "colour":
            wrong.append((k, step._replace(value=other(world.palette, random, step.value))))
        elif step.what == "count":
            numbers = language.NUMBERS[1 : world.max_objects + 1]
            wrong.append((k, step._replace(value=other(numbers, random, step.value, language.NUMBERS[main.count]))))
        elif step.what == "position":
            wrong.append((k, step._replace(value=other(POSITIONS, random, step.value))))
        elif step.what == "join":
            sides = next(sides for sides in _BESIDE.values() if step.value in sides)
            wrong.append((k, step._replace(value=sides[1 - sides.index(step.value)])))
        elif step.what == "again":
            differing = [j for j in range(k) if facts[j] != facts[k]]
            if differing:
                wrong.append((k, step._replace(value=_ORDINALS[differing[random.randrange(len(differing))]])))
    if not wrong:
        return ""
    changed = dict([wrong[random.randrange(len(wrong))]])
    steps = [changed.get(k, step) for k, step in enumerate(album.steps)]
    return " ".join(sentence(album, k, step, style) for k, (step, style) in enumerate(zip(steps, styles, strict=True)))


def questions(album: Album) -> list[dict[str, str]]:
    """Questions about single pictures of an album, with their answers."""
    concept = by_name()[album.graphs[0].things[0].concept]
    asked = []
    for ordinal, graph in zip(_ORDINALS, album.graphs, strict=False):
        main = main_of(graph, concept.name)
        asked.append(("count", f"how many {concept.plural} does the {ordinal} picture show?", language.NUMBERS[main.count]))
        if main.colour:
            subject = f"is the {concept.name}" if main.count == 1 else f"are the {concept.plural}"
            asked.append(("colour", f"what colour {subject} in the {ordinal} picture?", main.colour))
    return [{"question": question, "answer": answer, "kind": kind} for kind, question, answer in asked]


def conversation(album: Album, asked: list[dict[str, str]], most: int) -> list[Turn]:
    """Some of an album's questions with their answers, at most ``most``; all pictures come before the first."""
    chosen = Random(album.seed + 5).sample(asked, min(most, len(asked)))
    turns = [Turn(role, q[key]) for q in chosen for role, key in (("user", "question"), ("assistant", "answer"))]
    return [Turn("user", f"{IMAGE * len(album.graphs)}\n{turns[0].text}"), *turns[1:]]
