"""A small world of vectors for ways of adapting: Gaussian clusters of images, and class names whose vectors lie off their means."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diptych.choose.ways import Support
from diptych.core.arrays import unit_rows
from diptych.inference.heads import Head


@dataclass(frozen=True)
class World:
    support: Support
    x: np.ndarray  # test images
    y: np.ndarray

    def accuracy(self, head: Head) -> float:
        return float((np.asarray(head.logits(self.x)).argmax(1) == self.y).mean())

    @property
    def zeroshot(self) -> float:
        return float(((self.x @ self.support.texts.T).argmax(1) == self.y).mean())


def world(
    *, shift: float = 1.1, classes: int = 10, shots: int = 16, width: int = 64, noise: float = 0.9, templates: int = 6, good: int = 6,
    sentences: int = 5, unlabelled: int = 30, test: int = 40, seed: int = 0,
) -> World:  # fmt: skip
    """shift: how far a name's vector lies from the mean of its images, in units of that mean; 0: on it. All images and all texts have
    a direction of their own in common (the gap between the modalities). noise: the length of what is an image's own. The first
    ``good`` templates have the name's vector and a little noise; the others are random. Of a class's sentences the first is on the
    mean of its images, the rest are as the name.
    """
    rng = np.random.default_rng(seed)

    def directions(*shape: int) -> np.ndarray:
        return unit_rows(rng.normal(size=(*shape, width)))

    means, image_gap, text_gap = directions(classes), 0.7 * directions(1)[0], 0.7 * directions(1)[0]

    def images(number: int) -> tuple[np.ndarray, np.ndarray]:
        y = np.repeat(np.arange(classes), number)
        return unit_rows(means[y] + image_gap + noise * directions(len(y))).astype(np.float32), y

    names = means + shift * directions(classes)
    prompts = names[:, None] + text_gap + 0.2 * directions(classes, templates)
    prompts[:, good:] = text_gap + directions(classes, templates - good)
    described = means[:, None] + shift * directions(classes, sentences) + text_gap
    described[:, 0] = means + text_gap
    x, y = images(shots)
    extra = rng.permutation(images(unlabelled)[0])
    test_x, test_y = images(test)
    order = rng.permutation(len(test_y))
    support = Support(
        x, y, tuple(f"class {c}" for c in range(classes)), unit_rows(prompts).astype(np.float32),
        tuple(unit_rows(d).astype(np.float32) for d in described), scale=30.0, unlabelled=extra, seed=seed,
    )  # fmt: skip
    return World(support, test_x[order], test_y[order])
