"""Which frames of a clip are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from diptych.data.fields.video import spread

How = Literal["segments", "uniform", "rate", "first", "keys"]
HOWS: tuple[str, ...] = get_args(How)
EPSILON = 1e-6  # seconds: a frame that is shown at 0.3 s is there at 0.1 + 0.2 s


@dataclass(frozen=True)
class Sampling:
    """How frames are chosen; at most ``frames`` of a clip, all by the times at which they are shown.

    segments: the middle frame of as many equal parts. uniform: what is shown at times at equal distances, the first and the last
    frame included. rate: what is shown every 1 / ``rate`` seconds; of more than ``frames`` such frames, evenly spread ones. first:
    the first ones. keys: frames that are stored whole (key frames), evenly spread. within: start and end in seconds; only frames
    that are shown from the one to before the other.
    """

    frames: int = 32
    how: How = "segments"
    rate: float = 1.0
    within: tuple[float, float] | None = None

    @property
    def by_number(self) -> bool:
        """Whether the number of frames decides alone, not when they are shown."""
        return self.how in ("segments", "first", "keys") and self.within is None

    def choose(self, seconds: Sequence[float] | np.ndarray, keys: Sequence[int] | None = None) -> list[int]:
        """Numbers of the frames to keep, in order, none twice. seconds: when each frame is shown, in order. keys: numbers of key
        frames; None: every frame is one.
        """
        times = np.asarray(seconds, dtype=np.float64)
        first, last = 0, len(times)
        if self.within is not None:
            first, last = (int(np.searchsorted(times, t - EPSILON)) for t in self.within)
            first, last = self._at_least_one(times, first, last)
        inside = times[first:last]
        if not len(inside):
            return []
        if self.how == "segments":
            chosen: list[int] = spread(len(inside), self.frames)
        elif self.how == "first":
            chosen = list(range(min(self.frames, len(inside))))
        elif self.how == "uniform":
            chosen = _shown(inside, np.linspace(inside[0], inside[-1], self.frames)) if self.frames > 1 else [0]
        elif self.how == "rate":
            chosen = _shown(inside, inside[0] + np.arange(int((inside[-1] - inside[0] + EPSILON) * self.rate) + 1) / self.rate)
            chosen = [chosen[i] for i in spread(len(chosen), self.frames)]
        else:
            known = range(len(times)) if keys is None else keys
            chosen = [k - first for k in known if first <= k < last] or [0]
            chosen = [chosen[i] for i in spread(len(chosen), self.frames)]
        return [first + k for k in chosen]

    def _at_least_one(self, times: np.ndarray, first: int, last: int) -> tuple[int, int]:
        """An interval between two frames shows the one before it."""
        assert self.within is not None
        if first < last or not len(times):
            return first, last
        before = max(0, int(np.searchsorted(times, self.within[0] + EPSILON, "right")) - 1)
        return before, before + 1


def _shown(times: np.ndarray, wanted: np.ndarray) -> list[int]:
    """The frame that is shown at each time, each once."""
    numbers = np.maximum(np.searchsorted(times, wanted + EPSILON, "right") - 1, 0)
    return list(dict.fromkeys(numbers.tolist()))
