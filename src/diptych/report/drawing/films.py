"""Clips on a page: frames side by side, and a small player that steps through the same picture. Without the page's script the strip
stays."""

from __future__ import annotations

import base64
import io
from itertools import pairwise
from typing import Any

import numpy as np

from diptych.data.clips import strip
from diptych.report.drawing.marks import escape

FRAMES = 8
HEIGHT = 72  # pixels of a frame
PLAIN = 0.25  # seconds of a frame without times
SLOWEST = 1.0  # seconds: of clips that take long, time is shortened


class Film(str):
    """The data URI of a clip's frames in one row. frames: how many; step: seconds for which the player shows one; ratio: width by
    height of a frame; weights: how much a model attended to each, if that is known.
    """

    frames: int = 1
    step: float = PLAIN
    ratio: float = 1.0
    weights: tuple[float, ...] = ()


def film_of(clip: np.ndarray, weights: Any = None) -> Film:
    """A clip, uint8 [frames, height, width, 3], for the page. weights: of all its frames, adding up to 1."""
    from PIL import Image

    row, numbers = strip(clip, FRAMES, HEIGHT)
    out = io.BytesIO()
    Image.fromarray(row).save(out, "JPEG", quality=82, optimize=True)
    made = Film(f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}")
    made.frames, made.ratio = len(numbers), row.shape[1] / len(numbers) / row.shape[0]
    seconds = list(getattr(clip, "seconds", ()))
    gaps = [b - a for a, b in pairwise(seconds[i] for i in numbers)] if len(seconds) == len(clip) else []
    made.step = min(SLOWEST, max(0.05, sum(gaps) / len(gaps))) if gaps else PLAIN
    if weights is not None and len(weights) == len(clip):
        made.weights = tuple(float(weights[i]) for i in numbers)
    return made


def film(src: Film, alt: str) -> str:
    """The element of a clip: its strip, a player and, if they are known, bars for the weights of its frames."""
    shown = f"{src.frames} frames of a clip: {alt}"
    style = f"--n:{src.frames};--t:{src.step:.3g}s;--r:{src.ratio:.4g}"
    named = '<span class="hear">Play the clip</span>'
    button = f'<button type="button" class="film" aria-pressed="false" hidden style="{style}">{named}</button>'
    bars = ""
    if src.weights:
        most = max(src.weights) or 1.0
        bars = "".join(f'<i style="height:{100 * w / most:.0f}%" title="{w:.0%}"></i>' for w in src.weights)
        said = ", ".join(f"{w:.0%}" for w in src.weights)
        bars = f'<span class="weights" role="img" aria-label="Attention of the model to these frames: {said}">{bars}</span>'
    return (
        f'<span class="clip"><span class="strip"><img src="{src}" alt="{escape(shown)}" loading="lazy">{bars}</span>{button}</span>'
    )
