"""Where things are in each frame of a clip: tracks, computed from a script. Lengths are shares of the picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from random import Random

import numpy as np

from diptych.data.scenes.actions.script import DIRECTIONS, SPEEDS, Event, Script
from diptych.data.scenes.sprites import sprite

SMALL, USUAL, BIG = 0.2, 0.32, 0.44  # longer sides of a thing that has the picture to itself
SHARED = 0.8  # of these lengths, where two things share the picture
PAIRED = 0.26  # of things that overtake, hit or cross one another
SCREEN, COVER, HIDDEN = "screen", 0.5, 0.2  # a screen, or a thing with a solid middle, and what hides behind it
SOLID = 0.4  # the solid middle of a thing that another can hide behind, as a share of its length
CELLS = 5  # places of things that are counted, besides their number
Room = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass
class Track:
    """One thing through a clip, each an array or list with an entry per frame."""

    thing: int  # number in the script
    x: np.ndarray  # centre
    y: np.ndarray
    length: np.ndarray  # longer side
    colour: list[str]
    turn: list[int]  # quarter turns, anticlockwise
    seen: np.ndarray  # bool
    depth: int = 0  # larger ones are drawn later
    flip: bool = False

    @classmethod
    def still(cls, script: Script, thing: int, x: float, y: float, length: float) -> Track:
        """A thing that stays where it is."""
        n = script.frames
        given = np.full(n, x), np.full(n, y), np.full(n, length)
        return cls(thing, *given, [script.things[thing].colour] * n, [0] * n, np.ones(n, bool), thing)


@lru_cache(maxsize=1024)
def solid(concept: str) -> float:
    """The side of the largest opaque square in the middle of a drawing, as a share of its longer side."""
    opaque = sprite(concept, "red", 64).keep[..., 0] == 0
    height, width = opaque.shape
    middles = (k for k in range(min(height, width), 0, -1) if _middle(opaque, k).all())
    return next(middles, 0) / 64


def _middle(mask: np.ndarray, side: int) -> np.ndarray:
    top, left = (mask.shape[0] - side) // 2, (mask.shape[1] - side) // 2
    return mask[top : top + side, left : left + side]


def tracks(script: Script) -> list[Track]:
    """The tracks of the base clip, in the order in which things are drawn."""
    random = Random(script.seed + 2)
    flips = [random.random() < 0.5 for _ in script.things]
    make = _PAIRS.get(script.base[0].action)
    made = make(script, script.base[0], random) if make else _apart(script, random)
    for track in made:
        track.flip = flips[track.thing]
    return sorted(made, key=lambda t: t.depth)


# --- things that act on their own ---


def rooms(script: Script, random: Random) -> list[Room]:
    """A part of the picture for each thing: all of it, or a half that has the sides where the thing enters and leaves."""
    if len(script.things) == 1:
        return [(0.0, 0.0, 1.0, 1.0)]
    halves: list[list[Room]] = [[(0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)], [(0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0)]]
    sides = [[e.detail for e in script.base if e.thing == k and e.action in ("enter", "leave")] for k in range(2)]
    pairs = [pair[::step] for pair in halves for step in (1, -1)]
    fitting = [p for p in pairs if all(_touches(p[k], side) for k in range(2) for side in sides[k])]
    return fitting[random.randrange(len(fitting))]


def fits_rooms(events: tuple[Event, ...]) -> bool:
    """Whether two things have halves of the picture with the sides that they use."""
    used = [{e.detail for e in events if e.thing == k and e.action in ("enter", "leave")} for k in range(2)]
    wide = [{"left", "top", "bottom"}, {"right", "top", "bottom"}]
    high = [{"top", "left", "right"}, {"bottom", "left", "right"}]
    return any(used[0] <= pair[a] and used[1] <= pair[1 - a] for pair in (wide, high) for a in (0, 1))


def _touches(room: Room, side: str) -> bool:
    at = ("left", "top", "right", "bottom").index(side)
    return room[at] == (0.0 if at < 2 else 1.0)


def _apart(script: Script, random: Random) -> list[Track]:
    parts, made = rooms(script, random), []
    scale = 1.0 if len(parts) == 1 else SHARED
    for k, room in enumerate(parts):
        made.append(_one(script, k, [e for e in script.base if e.thing == k], random, room, scale))
    return made


def _one(script: Script, thing: int, events: list[Event], random: Random, room: Room, scale: float) -> Track:
    """One thing in its room: at one of two places along each axis, between which it moves."""
    growth = next((e.action for e in events if e.action in ("grow", "shrink")), "")
    length = scale * {"": USUAL, "grow": SMALL, "shrink": BIG}[growth]
    longest = scale * BIG if growth or any(e.action == "swell" for e in events) else length
    free = [room[2] - room[0] - longest, room[3] - room[1] - longest]
    span = [0.85 * f for f in free]
    low = [room[axis] + longest / 2 + 0.15 * random.random() * free[axis] for axis in (0, 1)]
    at = []
    for axis in (0, 1):
        steps = [DIRECTIONS[e.detail][axis] for e in events if e.action in ("move", "fall")]
        step = next((s for s in steps if s), 0)
        at.append((1 - step) / 2 if step else random.random())  # 0 or 1: where its first move begins
    jumps = any(e.action == "jump" for e in events)
    if jumps and not any(e.action == "move" for e in events):
        at[1] = 0.6 + 0.4 * random.random()  # room above
    track = Track.still(script, thing, low[0] + at[0] * span[0], low[1] + at[1] * span[1], length)
    for event in events:
        _act(track, event, span, scale)
    return track


def _act(track: Track, event: Event, span: list[float], scale: float) -> None:
    """Write one event into a track: what is after it stays as the event leaves it."""
    a, b, last = event.start, event.end, event.end - 1
    rest = slice(b, None)
    way = _progress(b - a, event.speed)
    if event.action == "move":
        dx, dy = DIRECTIONS[event.detail]
        for values, step in ((track.x, dx * span[0]), (track.y, dy * span[1])):
            values[a:b] += way * step
            values[rest] += step
    elif event.action == "fall":
        track.y[a:b] += np.minimum(1, (np.arange(b - a) / max(1, round(0.7 * (b - a)))) ** 2) * span[1]
        track.y[rest] = track.y[last]
    elif event.action in ("grow", "shrink"):
        end = scale * (BIG if event.action == "grow" else SMALL)
        track.length[a:b] += way * (end - track.length[a])
        track.length[rest] = end
    elif event.action in ("enter", "leave"):
        values = track.x if event.detail in ("left", "right") else track.y
        outside = -track.length[a] / 2 if event.detail in ("left", "top") else 1 + track.length[a] / 2
        inside = values[a]
        share = way if event.action == "leave" else 1 - way
        values[a:b] = inside + share * (outside - inside)
        if event.action == "leave":
            values[rest] = outside
        else:
            values[:a] = outside
    elif event.action == "turn":
        sign = -1 if event.detail == "clockwise" else 1
        phases = np.minimum(3, (4 * np.arange(b - a)) // (b - a))
        for k in range(a, len(track.turn)):
            track.turn[k] = (track.turn[k] + sign * int(phases[min(k - a, b - a - 1)])) % 4
    elif event.action == "recolour":
        first, second = event.detail.split(">")
        half = (a + b) // 2
        track.colour[:half] = [first] * half
        track.colour[half:] = [second] * (len(track.colour) - half)
    else:
        _return(track, event, span)


def _return(track: Track, event: Event, span: list[float]) -> None:
    """An action that ends as it began, and is the same backwards."""
    a, b = event.start, event.end
    n = b - a
    wave = 1 - np.abs(np.linspace(-1, 1, n))  # 0, up to 1, and back to 0
    wave = (wave + wave[::-1]) / 2
    if event.action == "jump":
        track.y[a:b] -= wave * min(0.8 * span[1], 0.3)
    elif event.action == "swell":
        track.length[a:b] *= 1 + (BIG / USUAL - 1) * wave
    elif event.action == "blink":
        track.seen[a + n // 4 : b - n // 4] = False
    elif event.action == "flash":
        track.colour[a + n // 4 : b - n // 4] = [event.detail] * (n - 2 * (n // 4))
    else:
        assert event.action == "spin", event.action
        sign = -1 if event.detail == "clockwise" else 1
        for k in range(n):  # 0, 1, 1, 2, 2, 3, 3, 0: backwards it is the other sense
            track.turn[a + k] = sign * ((k * 8 // n + 1) // 2) % 4


def _progress(n: int, speed: str) -> np.ndarray:
    """0 to 1, in the middle part of n frames; symmetric in time."""
    moving = max(2, round(SPEEDS[speed] * n))
    before = (n - moving) // 2
    way = np.clip((np.arange(n) - before) / (moving - 1), 0, 1)
    back: np.ndarray = (way + 1 - way[::-1]) / 2
    return back


# --- things that act on one another ---


def _axes(event: Event, along: np.ndarray, across: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x and y, from places along the direction of an event and across it."""
    dx, dy = DIRECTIONS[event.detail]
    along = along if dx + dy > 0 else 1 - along
    return (along, across) if dx else (across, along)


def _put(script: Script, event: Event, thing: int, along: np.ndarray, across: float, length: float) -> Track:
    track = Track.still(script, thing, 0.0, 0.0, length)
    track.x, track.y = _axes(event, along.astype(float), np.full(script.frames, across))
    return track


def _overtake(script: Script, event: Event, random: Random) -> list[Track]:
    """In two lanes, one from behind to before the other."""
    n, first = script.frames, random.random() < 0.5
    lanes = (0.28, 0.72) if first else (0.72, 0.28)
    fast, slow = np.linspace(0.15, 0.85, n), np.linspace(0.4, 0.6, n)
    jitter = 0.04 * (random.random() - 0.5)
    return [
        _put(script, event, thing, way, lanes[i] + jitter, PAIRED)
        for i, (thing, way) in enumerate(((event.thing, fast), (event.other, slow)))
    ]


def extent(script: Script, thing: int, along_x: bool, length: float) -> float:
    """The side of a drawing along an axis."""
    mask = sprite(script.things[thing].concept, script.things[thing].colour, 64).mask
    return length * float(mask.shape[1 if along_x else 0] / max(mask.shape))


def _hit(script: Script, event: Event, random: Random) -> list[Track]:
    """One comes, they touch, and the other goes on."""
    n, half = script.frames, script.frames // 2
    across_x = DIRECTIONS[event.detail][0] != 0
    one, two = (extent(script, k, across_x, PAIRED) / 2 for k in (event.thing, event.other))
    touch = 0.5 + 0.06 * (random.random() - 0.5)
    coming = np.concatenate([np.linspace(one + 0.02, touch - one, half), np.full(n - half, touch - one)])
    going = np.concatenate([np.full(half, touch + two), np.linspace(touch + two, 0.98 - two, n - half)])
    lane = 0.25 + 0.5 * random.random()
    return [_put(script, event, event.thing, coming, lane, PAIRED), _put(script, event, event.other, going, lane, PAIRED)]


def _cross(script: Script, event: Event, random: Random) -> list[Track]:
    """One passes another that stands, behind it or in front of it (the event's ``speed`` has no part in this)."""
    lane = 0.3 + 0.4 * random.random()
    moving = _put(script, event, event.thing, np.linspace(0.14, 0.86, script.frames), lane, PAIRED)
    standing = _put(script, event, event.other, np.full(script.frames, 0.5), lane, 1.3 * PAIRED)
    moving.depth, standing.depth = (0, 1) if event.action == "pass behind" else (1, 0)
    return [moving, standing]


def _hide(script: Script, event: Event, random: Random) -> list[Track]:
    """One goes behind another that covers it, and stays there."""
    cover = COVER if script.things[event.other].concept == SCREEN else COVER / min(1.0, 1.9 * SOLID)
    lane = 0.38 + 0.24 * random.random()
    way = np.clip(np.linspace(0.12, 0.78, script.frames), 0.12, 0.66)
    moving = _put(script, event, event.thing, way, lane, HIDDEN)
    standing = _put(script, event, event.other, np.full(script.frames, 0.66), lane, cover)
    moving.depth, standing.depth = 0, 1
    return [moving, standing]


def _add(script: Script, event: Event, random: Random) -> list[Track]:
    """One thing after the other appears."""
    total, n = int(event.detail), script.frames
    places = random.sample([(i, j) for i in range(3) for j in range(3)], total)
    made = []
    for k, (i, j) in enumerate(places):
        x, y = (0.17 + 0.33 * c + 0.03 * (random.random() - 0.5) for c in (i, j))
        track = Track.still(script, event.thing, x, y, 0.27)
        track.seen[: math.ceil(k * n / total)] = False
        made.append(track)
    return made


def _conceal(script: Script, event: Event, random: Random) -> list[Track]:
    """One goes behind a screen, or none does; the screen rises; one is there, or none is."""
    n, half = script.frames, script.frames // 2
    from_left = random.random() < 0.5
    turned = event._replace(detail="right" if from_left else "left")
    way = np.concatenate([np.clip(np.linspace(0.1, 0.6, half), 0, 0.5), np.full(n - half, 0.5)])
    moving = _put(script, turned, event.thing, way, 0.66, HIDDEN)
    moving.seen[:half] = event.detail in ("still there", "gone")
    moving.seen[half:] = event.detail in ("still there", "there by itself")
    screen = Track.still(script, event.other, 0.5, 0.66, COVER)
    screen.y = np.concatenate([np.full(half, 0.66), np.linspace(0.66, -0.3, n - half)])
    moving.depth, screen.depth = 0, 1
    return [moving, screen]


_PAIRS = {
    **{"overtake": _overtake, "hit": _hit, "pass behind": _cross, "pass before": _cross},
    **{"hide": _hide, "add": _add, "conceal": _conceal},
}
