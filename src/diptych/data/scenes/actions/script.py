"""The truth of a clip: who does what, from which frame to which.

A script has the events of a *base* clip and says how it is played: as it is, ``backwards``, ``swapped`` (the two halves in the
other order) or ``leap`` (the middle quarters exchanged). Each of these shows exactly the frames of the base clip, so clips that
differ in ``play`` alone cannot be told apart by a model that ignores the order of frames.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from diptych.data.scenes.graph import Things

FPS = 8.0
FRAMES = 16
DIRECTIONS = {
    **{"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)},
    **{"up and left": (-1, -1), "up and right": (1, -1), "down and left": (-1, 1), "down and right": (1, 1)},
}
SIDES = ("left", "right", "top", "bottom")
SPEEDS = {"slowly": 1.0, "": 2 / 3, "quickly": 1 / 3}  # the share of an event's frames in which a thing moves
_BACK = {vector: name for name, vector in DIRECTIONS.items()}
OPPOSITE = {name: _BACK[-x, -y] for name, (x, y) in DIRECTIONS.items()}
OPPOSITE |= {"clockwise": "anticlockwise", "anticlockwise": "clockwise"}
# What is seen when an action is played backwards; the others show themselves, in the opposite direction if they have one.
INVERSE = {"grow": "shrink", "enter": "leave", "hide": "emerge", "add": "remove", "fall": "rise"}
INVERSE |= {second: first for first, second in INVERSE.items()}
RETURNING = ("jump", "blink", "swell", "flash", "spin")  # they end as they began, so that two of them can be swapped
PLAYS = ("", "backwards", "swapped", "leap")


class Event(NamedTuple):
    """What one thing does, perhaps to another."""

    thing: int  # number of the thing
    action: str
    detail: str = ""  # direction, side, sense, colours "red>blue", number of things, or what a screen reveals
    other: int = -1  # number of the other thing
    speed: str = ""  # of SPEEDS
    start: int = 0  # its first frame
    end: int = FRAMES  # the frame after its last one

    def backwards(self, frames: int) -> Event:
        """What is seen when a clip of so many frames is played backwards."""
        turned = self._replace(start=frames - self.end, end=frames - self.start, action=INVERSE.get(self.action, self.action))
        if self.action == "hit":  # the one that was hit comes back, and hits the other
            return turned._replace(thing=self.other, other=self.thing, detail=OPPOSITE[self.detail])
        if self.action == "recolour":
            return turned._replace(detail=">".join(self.detail.split(">")[::-1]))
        return turned._replace(detail=OPPOSITE[self.detail]) if self.detail in OPPOSITE and self.action not in _SIDED else turned


_SIDED = ("enter", "leave")  # the detail is a side, which stays
UNSAID = ("hit", "pass behind", "pass before", "hide", "emerge")  # of these, captions do not say the direction


class Script(NamedTuple):
    """A clip. ``events`` is what it shows; ``base``, what it is drawn from."""

    things: tuple[Things, ...]
    base: tuple[Event, ...]
    play: str = ""  # one of PLAYS
    background: str = "paper"
    seed: int = 0  # of everything the truth leaves open
    frames: int = FRAMES
    physics: str = ""  # continuity, permanence or gravity: the law that the clip keeps or breaks

    @property
    def events(self) -> tuple[Event, ...]:
        """What happens, in order of time."""
        if self.play == "backwards":
            return tuple(sorted((event.backwards(self.frames) for event in self.base), key=lambda e: e.start))
        if self.play == "swapped":
            half = self.frames // 2
            moved = [e._replace(start=(e.start + half) % self.frames, end=(e.start + half) % self.frames + half) for e in self.base]
            return tuple(sorted(moved, key=lambda e: e.start))
        return self.base

    @property
    def order(self) -> list[int]:
        """Which frame of the base clip is shown at each place: a permutation."""
        numbers = list(range(self.frames))
        half, quarter = self.frames // 2, self.frames // 4
        if self.play == "backwards":
            return numbers[::-1]
        if self.play == "swapped":
            return numbers[half:] + numbers[:half]
        if self.play == "leap":
            last = self.frames - quarter
            return numbers[:quarter] + numbers[half:last] + numbers[quarter:half] + numbers[last:]
        return numbers

    @property
    def possible(self) -> bool:
        """Whether this can happen."""
        if self.physics == "permanence":
            return self.base[0].detail in ("still there", "nothing there")
        return not (self.physics and self.play)

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            **self._asdict(),
            "things": [things._asdict() for things in self.things],
            "base": [event._asdict() for event in self.base],
            "events": [event._asdict() for event in self.events],
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Script:
        """The script of ``as_dict``."""
        known = {k: v for k, v in content.items() if k != "events"}
        things = tuple(Things(**things) for things in known["things"])
        return cls(**{**known, "things": things, "base": tuple(Event(**event) for event in known["base"])})
