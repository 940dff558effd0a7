"""Clips of moving things: their truth, and their frames.

Every motion has an inverse, and all that is random is the same for a clip and its inverse: played backwards, a clip is exactly that
of the inverse events in reverse order, and both are drawn equally often. So a model that ignores the order of frames is right by
chance only.
"""

from __future__ import annotations

import itertools
from random import Random
from typing import Any, NamedTuple

import numpy as np

from diptych.data.scenes.graph import Things
from diptych.data.scenes.layout import blit, ground
from diptych.data.scenes.sprites import sprite

FRAMES = 8
FPS = 4.0
MOTIONS = ("left", "right", "up", "down", "grow", "shrink", "enter", "leave")
INVERSE = {
    **{"left": "right", "right": "left", "up": "down", "down": "up"},
    **{"grow": "shrink", "shrink": "grow", "enter": "leave", "leave": "enter"},
}
SIDES = ("left", "right", "top", "bottom")  # where a thing enters and leaves
_STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_STEP = 0.4  # of a motion in a direction, as a share of the picture; less where there is no room for it
_LENGTHS = {1: (0.2, 0.36, 0.46), 2: (0.16, 0.26, 0.36)}  # things in the clip → longer side of a small, usual, big one

Room = tuple[float, float, float, float]  # left, top, right, bottom, as shares of the picture
State = tuple[float, float, float]  # x and y of a thing's centre and its longer side, as shares of the picture


class Event(NamedTuple):
    """What one thing does."""

    thing: int  # number of the thing
    motion: str  # one of MOTIONS
    side: str = ""  # one of SIDES, of enter and leave


class Clip(NamedTuple):
    """A clip: one or two things, one event after the other. Things without an event stay where they are."""

    things: tuple[Things, ...]
    events: tuple[Event, ...]
    background: str = "paper"
    seed: int = 0  # of everything the truth leaves open

    def reversed(self) -> Clip:
        """The clip played backwards."""
        return self._replace(events=tuple(e._replace(motion=INVERSE[e.motion]) for e in self.events[::-1]))

    def possible(self) -> bool:
        """Whether these events can follow each other: nothing acts before it enters or after it leaves, and nothing does the same
        twice.
        """
        for thing in range(len(self.things)):
            own = [e for e in self.events if e.thing == thing]
            if any(a[1:] == b[1:] for a, b in itertools.pairwise(own)):
                return False
            if any(e.motion == "leave" for e in own[:-1]) or any(e.motion == "enter" for e in own[1:]):
                return False
        return True

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            **self._asdict(),
            "things": [things._asdict() for things in self.things],
            "events": [event._asdict() for event in self.events],
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Clip:
        """The clip of ``as_dict``."""
        things = tuple(Things(**things) for things in content["things"])
        return cls(**{**content, "things": things, "events": tuple(Event(**event) for event in content["events"])})


def states(clip: Clip, thing: int, random: Random, room: Room) -> list[State]:
    """Where a thing is before its first event and after each of its events."""
    events = [event for event in clip.events if event.thing == thing]
    small, usual, big = _LENGTHS[len(clip.things)]
    growth = next((e.motion for e in events if e.motion in ("grow", "shrink")), "")
    length = {"": usual, "grow": small, "shrink": big}[growth]
    path: list[list[float]] = [[0.0, 0.0, length]]
    longest = max(usual, length, big if growth else 0)
    for event in events:
        x, y, length = path[-1]
        dx, dy = _STEPS.get(event.motion, (0, 0))
        length = {"grow": big, "shrink": small}.get(event.motion, length)
        x += dx * min(_STEP, 0.85 * (room[2] - room[0] - longest))
        y += dy * min(_STEP, 0.85 * (room[3] - room[1] - longest))
        path.append([x, y, length])
    for axis in (0, 1):  # anywhere in the room
        low = min(state[axis] - state[2] / 2 for state in path)
        high = max(state[axis] + state[2] / 2 for state in path)
        shift = room[axis] - low + random.random() * (room[axis + 2] - room[axis] - (high - low))
        for state in path:
            state[axis] += shift
    for number, event in enumerate(events):
        if event.side:
            outside = path[number] if event.motion == "enter" else path[number + 1]
            axis = 0 if event.side in ("left", "right") else 1
            outside[axis] = -outside[2] / 2 if event.side in ("left", "top") else 1 + outside[2] / 2
    return [(round(x, 6), round(y, 6), round(length, 6)) for x, y, length in path]


def rooms(clip: Clip, random: Random) -> list[Room]:
    """The part of the picture in which each thing moves: all of it, or a half each, next to the edge where it enters or leaves."""
    if len(clip.things) == 1:
        return [(0.0, 0.0, 1.0, 1.0)]
    halves: list[tuple[Room, Room]] = [
        ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)),
        ((0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0)),
    ]
    fitting = [pair for half in halves for pair in (half, half[::-1]) if all(_touches(pair[e.thing], e.side) for e in clip.events)]
    return list(fitting[random.randrange(len(fitting))])


def _touches(room: Room, side: str) -> bool:
    if not side:
        return True
    edge = room[{"left": 0, "top": 1, "right": 2, "bottom": 3}[side]]
    return edge == (0.0 if side in ("left", "top") else 1.0)


def frames_of(clip: Clip, size: int) -> tuple[list[np.ndarray], list[list[list[int] | None]]]:
    """The frames, ``FRAMES`` of uint8 [size, size, 3], and for each thing its box in each frame.

    A box is [left, top, right, bottom] in pixels, cut to the picture; None where nothing of the thing can be seen.
    """
    random = Random(clip.seed + 2)
    still = ground(clip.background, random, size)
    parts = rooms(clip, random)
    flips = [random.random() < 0.5 for _ in clip.things]
    paths = [states(clip, k, random, room) for k, room in enumerate(parts)]
    slots = [[i for i, event in enumerate(clip.events) if event.thing == k] for k in range(len(clip.things))]
    order = sorted(range(len(clip.things)), key=lambda k: clip.things[k])
    pictures, tracks = [], [[] for _ in clip.things]  # type: tuple[list[np.ndarray], list[list[list[int] | None]]]
    for frame in range(FRAMES):
        canvas = still.copy()
        for k in order:
            x, y, length = _state(paths[k], slots[k], len(clip.events), frame)
            drawn = sprite(clip.things[k].concept, clip.things[k].colour, round(length * size))
            height, width = drawn.mask.shape
            left, top = round(x * size - width / 2), round(y * size - height / 2)
            box = [max(0, left), max(0, top), min(size, left + width), min(size, top + height)]
            seen = box[2] > box[0] and box[3] > box[1]
            if seen:
                blit(canvas, drawn, left, top, flips[k])
            tracks[k].append(box if seen else None)
        pictures.append(canvas.astype(np.uint8))
    return pictures, tracks


def _state(path: list[State], slots: list[int], events: int, frame: int) -> State:
    """Between the states of a path. Two events take the first and the second half of the frames."""
    last = FRAMES - 1 if events == 1 else FRAMES // 2 - 1
    state = path[0]
    for number, slot in enumerate(slots):
        k = min(max(frame - slot * FRAMES // 2 if events > 1 else frame, 0), last)
        a, b = path[number], path[number + 1]
        if k:
            state = (
                (a[0] * (last - k) + b[0] * k) / last,
                (a[1] * (last - k) + b[1] * k) / last,
                (a[2] * (last - k) + b[2] * k) / last,
            )
    return state
