"""The settings of a ``scenes:`` address: the size of the world, and what is held out of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl

from diptych.core.errors import DiptychError, nearest
from diptych.data.scenes.concepts import all_concepts
from diptych.data.scenes.sprites import PALETTE, versions

FORMAT = 2  # counts up when the same address gives other scenes or captions
SPLITS = ("train", "validation", "test", "heldout-combinations", "heldout-concepts")
RELATIONS = ("left", "above", "front")  # the first group is left of, above or in front of the second
_LATER = (
    "told",
    "zipf",
    "habit",
    "ask",
    "actions",
    "clip_frames",
    "events",
    "backwards",
    "things",
    "distractors",
    "tiny",
    "crowded",
    "wrong",
    "masks",
    "named",
    "signs",
    "vocabulary",
    "smallest",
    "largest",
    "notes",
    "numbers",
    "transcribe",
)  # options that were added after the first worlds had been published
TRAIN_LENGTH, HELD_OUT_LENGTH = 2**31 - 1, 10_000


@dataclass(frozen=True)
class World:
    """One world. Each field is an option of the address, as in ``scenes:small?size=96&seed=3``."""

    size: int = 64  # pixels, height and width
    concepts: int = 240  # that training sees; some more are held out
    colours: int = 10
    max_objects: int = 6  # in one scene
    natural: float = 0.25  # chance that a group keeps the drawing's own colours
    placed: float = 0.2  # share of the scenes with one object, of which captions give the place
    counted: float = 0.13  # share of the scenes with several objects of one kind
    trios: float = 0.1  # share of the scenes with three groups; the rest are pairs in relation
    seed: int = 0
    split: str = "train"
    length: int = 0  # 0: as many as there are
    full: int = 3  # captions a sample carries: full descriptions, then the expected numbers of other kinds
    short: float = 0.2
    long: float = 0.2
    absent: float = 0.3
    frames: int = 3  # "…", "a picture of …", "there is …": how many of these openings captions use
    told: int = 0  # how many of a scene's groups captions speak of; 0: all
    zipf: float = 0.0  # a concept of rank r is drawn with a chance proportional to 1 / r^zipf; 0: all equally often
    ask: int = 0  # how many of a scene's questions its conversation asks and answers; 0: no conversation
    habit: float = 0.0  # chance that a coloured group has its concept's habitual colour; else, any
    actions: str = ""  # of clips: kinds of clips, comma-separated, or all (scenes/actions); "": the first form of clips
    clip_frames: int = 0  # of clips with actions: frames of a clip; 0: 16, or 16 for each of several events
    events: int = 0  # of clips with actions: how many follow each other in a long clip; 0: clips of one or two events
    backwards: int = 0  # of clips with actions: 1: the false caption of a clip is that of the clip played backwards
    things: int = 0  # of scenes:regions: single objects in a scene, three to so many
    distractors: int = 0  # of scenes:regions: other objects of the kind that the scene was drawn around
    tiny: float = 0.0  # of scenes:regions: chance that an object is very small
    crowded: float = 0.0  # of scenes:regions: the largest share of an object that others may hide
    wrong: int = 0  # of scenes:regions: wrong versions of each phrase
    named: int = 0  # of scenes:regions: 1: every object is a region with its colour and name as phrase, which others may share
    masks: int = 0  # 1: regions have the mask of their visible pixels
    signs: int = 0  # of scenes:text: how many signs and labelled things a picture shows at most
    vocabulary: int = 0  # of scenes:text: how many words training reads
    smallest: int = 0  # of scenes:text: the least height of print in pixels; 0: a twentieth of the picture
    largest: int = 0  # of scenes:text: the greatest; 0: a seventh of the picture
    notes: float = 0.0  # of scenes:text: chance of small print at the bottom
    numbers: float = 0.0  # of scenes:text: chance that a sign or label has a number
    transcribe: int = 0  # of scenes:text: 1: conversations are one request to read everything

    def __post_init__(self) -> None:
        most = len(all_concepts()) * 10 // 11
        limits: dict[str, tuple[float, float]] = {
            **{name: (0, 1) for name in ("placed", "counted", "trios", "short", "long", "absent")},
            **{"size": (32, 1024), "concepts": (6, most), "colours": (2, len(PALETTE)), "max_objects": (2, 6)},
            **{"natural": (0, 0.9), "full": (1, 3), "frames": (1, 3), "length": (0, TRAIN_LENGTH)},
            **{"told": (0, 3), "zipf": (0, 4), "habit": (0, 1), "ask": (0, 16), "backwards": (0, 1)},
            **{"clip_frames": (0, 1024), "events": (0, 32), "things": (0, 24), "distractors": (0, 8)},
            **{"tiny": (0, 1), "crowded": (0, 0.6), "wrong": (0, 20), "masks": (0, 1), "named": (0, 1)},
            **{"signs": (0, 6), "vocabulary": (0, 1000), "smallest": (0, 128), "largest": (0, 256)},
            **{"notes": (0, 1), "numbers": (0, 1), "transcribe": (0, 1)},
        }
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise DiptychError(f"scenes: {name} must be from {low} to {high}, not {getattr(self, name)}")
        if self.clip_frames % 2 or 0 < self.clip_frames < 8:  # clips have two halves
            raise DiptychError(f"scenes: clip_frames must be even and at least 8, not {self.clip_frames}")
        if self.split not in SPLITS:
            raise DiptychError(f"scenes: no split '{self.split}'{nearest(self.split, SPLITS)}")

    def __len__(self) -> int:
        longest = TRAIN_LENGTH if self.split == "train" else HELD_OUT_LENGTH
        return min(self.length or longest, longest)

    def with_split(self, name: str) -> World:
        """The same world with another split. Raises DiptychError if there is no such split."""
        return replace(self, split=name)

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with every setting and with the versions of what draws and describes scenes."""
        # A world that does not use the later options keeps its fingerprint.
        given = {k: v for k, v in asdict(self).items() if v or k not in _LATER}
        content = {**given, "length": len(self), "format": FORMAT, **versions()}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    # What there is.

    @cached_property
    def seen(self) -> tuple[str, ...]:
        """Concepts of the training scenes."""
        return tuple(concept.name for concept in all_concepts()[: self.concepts])

    @cached_property
    def unseen(self) -> tuple[str, ...]:
        """Concepts that only the split ``heldout-concepts`` shows, a tenth as many."""
        return tuple(c.name for c in all_concepts()[self.concepts : self.concepts + max(2, self.concepts // 10)])

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Concepts the scenes of this split show."""
        return self.seen + self.unseen if self.split == "heldout-concepts" else self.seen

    @cached_property
    def focus(self) -> tuple[str, ...]:
        """Concepts of which each scene of this split shows at least one."""
        return self.unseen if self.split == "heldout-concepts" else self.seen

    def number(self, concept: str) -> int:
        """The place of a concept in ``names``."""
        return self._index[concept]  # names are the first of all concepts, in their order

    @cached_property
    def palette(self) -> tuple[str, ...]:
        """Names of the colours in use."""
        return tuple(PALETTE)[: self.colours]

    # How often things are drawn.

    @cached_property
    def weights(self) -> dict[str, float]:
        """The frequency of each concept, relative to the most frequent. Ranks are shuffled, since the list of concepts begins with
        the plainest.
        """
        order = sorted(self.seen + self.unseen, key=lambda name: hashlib.sha256(f"{self.seed} {name}".encode()).digest())
        return {name: (rank + 1.0) ** -self.zipf for rank, name in enumerate(order)}

    @cached_property
    def habits(self) -> dict[str, str]:
        """The habitual colour of each concept, one that training may show."""
        result = {}
        for name in self.seen + self.unseen:
            allowed = [k for k in self.palette if (name, k) not in self.held_out_colours]
            result[name] = allowed[hashlib.sha256(f"{self.seed} {name} habit".encode()).digest()[0] % len(allowed)]
        return result

    # What is held out. By remainders, so that every concept, colour and relation loses an equal share.

    @cached_property
    def _index(self) -> dict[str, int]:
        return {concept.name: number for number, concept in enumerate(all_concepts())}

    @cached_property
    def held_out_colours(self) -> frozenset[tuple[str, str]]:
        """(concept, colour) pairs that training never shows: at most one colour of each concept."""
        pairs = ((c, k) for c in self.seen + self.unseen for k in self.palette)
        return frozenset((c, k) for c, k in pairs if (3 * self._index[c] + 5 * tuple(PALETTE).index(k)) % 11 == 0)

    def is_held_out_relation(self, first: str, relation: str, second: str) -> bool:
        """Whether training never shows these two concepts in this relation and order: one in 17."""
        a, b = self._index[first], self._index[second]
        return (7 * a + 13 * b + 5 * RELATIONS.index(relation)) % 17 == 0


# Few wordings and mostly pairs, so that minutes are enough to learn composition; the full world has more wordings.
_PLAIN: dict[str, Any] = {"short": 0.1, "long": 0.0, "frames": 2, "placed": 0.12, "counted": 0.1, "trios": 0.0}
PRESETS: dict[str, dict[str, Any]] = {
    "small": {"size": 48, "concepts": 12, "colours": 6, "max_objects": 3, "natural": 0.0, **_PLAIN},
    "medium": {"size": 64, "concepts": 46, "colours": 8, "max_objects": 4, **_PLAIN},
    "full": {},
    "clips": {"size": 64, "concepts": 24, "colours": 8, "max_objects": 2, "natural": 0.0, "full": 2},
    "albums": {"size": 64, "concepts": 24, "colours": 8, "max_objects": 4, "natural": 0.0, "full": 1},
    "regions": {
        **{"size": 64, "concepts": 12, "colours": 6, "natural": 0.0, "frames": 2},
        **{"things": 6, "distractors": 2, "wrong": 3, "masks": 1},
    },
    "text": {
        **{"size": 96, "concepts": 12, "colours": 6, "natural": 0.0, "frames": 2, "full": 2},
        **{"signs": 3, "vocabulary": 100, "notes": 0.5, "numbers": 0.25},
    },
}
# Options of the worlds that do not draw single pictures; the other options have no effect there.
_COMMON = ("size", "concepts", "colours", "natural", "seed", "split", "length", "zipf", "ask", "habit")
OF_CLIPS = ("actions", "clip_frames", "events", "backwards")
OF_REGIONS = ("things", "distractors", "tiny", "crowded", "wrong", "named")
OF_TEXT = ("signs", "vocabulary", "smallest", "largest", "notes", "numbers", "transcribe")
ONLY = {
    "clips": (*_COMMON, "full", *OF_CLIPS),
    "albums": (*_COMMON, "max_objects"),
    "regions": (*(name for name in _COMMON if name not in ("natural", "ask")), "frames", "masks", *OF_REGIONS),
    "text": ("size", "concepts", "colours", "seed", "split", "length", "ask", "frames", "full", *OF_TEXT),
}


def parse(address: str) -> World:
    """``scenes:[preset][?option=value&…]`` as a world."""
    scheme, _, rest = address.partition(":")
    if scheme != "scenes":
        raise DiptychError(f"'{address}' is not an address of the built-in scenes: it must start with 'scenes:'")
    preset, _, query = rest.partition("?")
    if (preset or "full") not in PRESETS:
        raise DiptychError(f"'{address}': no preset '{preset}'{nearest(preset, PRESETS)}")
    types: dict[str, type] = {field.name: type(getattr(World, field.name)) for field in fields(World)}
    options = dict(PRESETS[preset or "full"])
    for part in query.split("&") if query else []:
        pairs = parse_qsl(part, keep_blank_values=True)
        name, text = pairs[0] if pairs else ("", "")
        known = ONLY.get(preset, tuple(name for name in types if name not in (*OF_CLIPS, *OF_REGIONS, *OF_TEXT)))
        if name not in known:
            raise DiptychError(f"'{address}': no option '{name}'{nearest(name, known)}")
        try:
            options[name] = types[name](text)
        except ValueError:
            kind = {"int": "a whole number", "float": "a number"}[types[name].__name__]
            raise DiptychError(f"'{address}': {name} must be {kind}, not '{text}'") from None
    return World(**options)
