"""A map drawn over its picture."""

from __future__ import annotations

import numpy as np

# From low to high, dark to light, so that they differ without colours, too.
STOPS = np.array([[20, 12, 54], [110, 24, 110], [190, 55, 82], [246, 140, 30], [252, 240, 150]], dtype=np.float64)
LEAST = 0.35  # how much of the picture is seen where the map is highest
SMALLEST = 192  # pixels of the shorter side of what is drawn: small pictures are enlarged without smoothing


def colours(values: np.ndarray) -> np.ndarray:
    """Values in 0 … 1 as colours, float64 [..., 3] in 0 … 255."""
    at = np.clip(values, 0, 1) * (len(STOPS) - 1)
    low = np.minimum(at.astype(int), len(STOPS) - 2)
    result: np.ndarray = STOPS[low] + (at - low)[..., None] * (STOPS[low + 1] - STOPS[low])
    return result


def scaled(heat: np.ndarray) -> np.ndarray:
    """Heat from its least to its highest value as 0 … 1; 0 if there is no difference."""
    least, most = float(heat.min()), float(heat.max())
    result: np.ndarray = (heat - least) / (most - least) if most > least else np.zeros_like(heat)
    return result


def overlay(image: np.ndarray, heat: np.ndarray, box: tuple[float, float, float, float] | None = None) -> np.ndarray:
    """The picture in grey under the map in colours, uint8, and the box as a frame. image uint8 [H, W, 3], heat [H, W]."""
    share = scaled(heat)[..., None]
    grey = image.astype(np.float64).mean(-1, keepdims=True).repeat(3, -1)
    cover = (1 - LEAST) * np.sqrt(share)
    mixed = grey * (1 - cover) + colours(share[..., 0]) * cover
    times = max(1, -(-SMALLEST // min(image.shape[:2])))
    drawn: np.ndarray = mixed.round().astype(np.uint8).repeat(times, 0).repeat(times, 1)
    if box is not None:
        frame(drawn, (box[0] * times, box[1] * times, box[2] * times, box[3] * times))
    return drawn


def enlarged(image: np.ndarray) -> np.ndarray:
    """The picture as large as ``overlay`` draws it."""
    times = max(1, -(-SMALLEST // min(image.shape[:2])))
    drawn: np.ndarray = image.repeat(times, 0).repeat(times, 1)
    return drawn


def frame(image: np.ndarray, box: tuple[float, float, float, float], width: int = 2) -> None:
    """Draw the edges of a box into a picture, white with a black line inside."""
    height, wide = image.shape[:2]
    left, top, right, bottom = (round(x) for x in box)
    left, right = (int(np.clip(x, 0, wide)) for x in (left, right))
    top, bottom = (int(np.clip(x, 0, height)) for x in (top, bottom))
    for inset, colour in ((0, 255), (width, 0)):
        t, b, lo, hi = top + inset, bottom - inset, left + inset, right - inset
        if b - t <= 2 * width or hi - lo <= 2 * width:
            return
        image[t : t + width, lo:hi] = image[b - width : b, lo:hi] = colour
        image[t:b, lo : lo + width] = image[t:b, hi - width : hi] = colour
