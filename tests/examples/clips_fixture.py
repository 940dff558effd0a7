"""Clips of one shape that moves, with captions: small and quick to draw."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from diptych.core.sample import Captions, Sample, Video

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (240, 210, 40),
    "white": (245, 245, 245),
    "black": (10, 10, 10),
}
SHAPES = ("square", "disc", "cross", "ring")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SPEEDS = {"slowly": 2.0, "quickly": 5.0}  # pixels a frame


class Clips:
    """``clips_fixture:Clips:``. What a clip's middle shows does not depend on the direction: only the order of the frames does."""

    instant = True
    image_size = 32

    def __init__(self, place: str = "", *, samples: int = 100_000, frames: int = 4, part: str = "train"):
        self.samples, self.frames, self.part = samples, frames, part
        self.address, self.problems = f"clips_fixture:Clips:?part={part}", []

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> Sample:
        rng = random.Random(f"{self.part}/{index}")
        colour, shape, direction, speed = (rng.choice(list(table)) for table in (COLOURS, SHAPES, DIRECTIONS, SPEEDS))
        middle, step = (rng.uniform(12, 20), rng.uniform(12, 20)), SPEEDS[speed]
        ground = np.random.default_rng(rng.getrandbits(32)).integers(100, 156, (32, 32, 1)).repeat(3, 2)
        times = [k - (self.frames - 1) / 2 for k in range(self.frames)]
        dx, dy = DIRECTIONS[direction]
        pictures = [drawn(ground, shape, COLOURS[colour], middle[0] + dx * step * t, middle[1] + dy * step * t) for t in times]
        text = f"a {colour} {shape} moves {speed} {'to the ' if dx else ''}{direction}"
        return Sample(
            f"{self.part}/{index}", video=Video(pictures, [0.25 * k for k in range(self.frames)]), text=Captions([text], [text])
        )

    def fingerprint(self) -> str:
        return f"clips 1 {self.part} {self.samples} {self.frames}"

    def split(self, name: str) -> Clips:
        return Clips(samples=self.samples, frames=self.frames, part=name)


def drawn(ground: np.ndarray, shape: str, colour: Any, x: float, y: float) -> np.ndarray:
    rows, columns = np.mgrid[0:32, 0:32]
    dx, dy = np.abs(columns - x), np.abs(rows - y)
    far = np.hypot(dx, dy)
    inside = {
        "square": np.maximum(dx, dy) < 4.5,
        "disc": far < 5.2,
        "cross": (np.minimum(dx, dy) < 1.6) & (np.maximum(dx, dy) < 5.5),
        "ring": (far < 5.5) & (far > 2.8),
    }[shape]
    return np.where(inside[..., None], np.array(colour), ground).astype(np.uint8)
