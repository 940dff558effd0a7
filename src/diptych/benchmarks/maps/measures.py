"""What is measured of a map, and the maps that know nothing.

Heat is float [height, width], higher where the text is said to be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from diptych.core.capabilities import Image

SHARES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7)  # of the pixels that are deleted or inserted; 0 and 1 are the same for every map
CHUNK = 256  # changed pictures scored at a time

Score = Callable[[Sequence[Image], Sequence[str]], np.ndarray]  # how well text i fits picture i


def pointing(heat: np.ndarray, mask: np.ndarray) -> float:
    """Whether the highest pixel lies in the mask, 1 or 0; of several equal ones, the share that does (pointing game, Zhang et al.
    2016, arXiv:1608.00507, section 4.2, without its tolerance of 15 pixels: masks are exact).
    """
    highest = heat >= heat.max()
    return float(mask[highest].mean())


def order_of(heat: np.ndarray, seed: int = 0) -> np.ndarray:
    """The rank of each pixel, 0 for the highest, int [height, width]; equal ones in random order."""
    ties = np.random.default_rng(seed).permutation(heat.size)
    ranks = np.empty(heat.size, dtype=np.int64)
    ranks[np.lexsort((ties, -heat.ravel().astype(np.float64)))] = np.arange(heat.size)
    return ranks.reshape(heat.shape)


def changed(image: Image, ranks: np.ndarray, share: float, insert: bool) -> Image:
    """The picture with the ``share`` of its pixels that rank first deleted (they get its mean colour), or with these alone.
    ranks: as ``order_of`` gives them.
    """
    chosen = ranks < round(share * ranks.size)
    result = image.copy()
    result[~chosen if insert else chosen] = image.reshape(-1, 3).mean(0).round().astype(np.uint8)
    return result


def areas(
    score: Score, images: Sequence[Image], texts: Sequence[str], heats: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The mean score while the highest pixels are inserted, [n], and while they are deleted, [n] (Petsiuk et al. 2018,
    arXiv:1806.07421, section 4; means over ``SHARES``, in the units of the score).
    """
    jobs = [(i, insert, share) for i in range(len(images)) for insert in (True, False) for share in SHARES]
    totals, ranks = np.zeros((len(images), 2)), [order_of(heat, i) for i, heat in enumerate(heats)]
    for start in range(0, len(jobs), CHUNK):
        part = jobs[start : start + CHUNK]
        pictures = [changed(images[i], ranks[i], share, insert) for i, insert, share in part]
        found = np.asarray(score(pictures, [texts[i] for i, _, _ in part]), dtype=np.float64)
        for (i, insert, _), value in zip(part, found, strict=True):
            totals[i, 0 if insert else 1] += value / len(SHARES)
    return totals[:, 0], totals[:, 1]


def blob(height: int, width: int) -> np.ndarray:
    """A hill in the middle of the picture, a quarter of its sides wide (standard deviation)."""
    y, x = ((np.arange(n) + 0.5) / n - 0.5 for n in (height, width))
    hill: np.ndarray = np.exp(-((y[:, None] ** 2 + x[None] ** 2) / (2 * 0.25**2)))
    return hill.astype(np.float32)


def random_grid(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """A map of independent normal numbers on a model's own grid."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)
