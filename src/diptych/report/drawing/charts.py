"""Charts of numbers against numbers as inline SVG: curves with bands, points with intervals, diagonals, log axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from diptych.report.drawing.marks import COLOURS, dot, line, svg, text

WIDTH, HEIGHT = 340, 230
LEFT, RIGHT, TOP, BOTTOM = 48, 14, 12, 42
POINTS = 200  # of a curve: more are not visible


@dataclass(frozen=True)
class Series:
    """One line or point cloud.

    index: the colour, that of the recipe in the comparison. style: ``line``, ``dashed``, ``points`` or ``both``. low, high: the
    interval of each point.
    """

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    index: int = 0
    style: str = "line"
    low: Sequence[float] | np.ndarray | None = None
    high: Sequence[float] | np.ndarray | None = None


def chart(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    label: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    log_x: bool = False,
    percent: tuple[bool, bool] = (False, False),
    diagonal: bool = False,
    level: float | None = None,
) -> str:
    """A chart as SVG. label: a description with the main numbers, for screen readers.

    percent: whether the ticks of x and y are in per cent. diagonal: draw the line y = x. level: a horizontal reference such as
    chance. With ``log_x`` all x must be above 0. Points with NaN are left out.
    """
    kept = [_finite(s, log_x) for s in series]
    xs = np.concatenate([s.x for s in kept]) if kept else np.zeros(0)
    ys = np.concatenate([np.concatenate([s.y, *(end for end in (s.low, s.high) if end is not None)]) for s in kept])
    if not len(xs):
        return ""
    x0, x1 = x_range or _span(xs, log_x)
    y0, y1 = y_range or _span(np.append(ys, level) if level is not None else ys)
    forward: Callable[[float], float] = math.log10 if log_x else float

    def sx(v: float) -> float:
        """The pixel of an x, from the left."""
        return LEFT + (WIDTH - LEFT - RIGHT) * (forward(v) - forward(x0)) / (forward(x1) - forward(x0))

    def sy(v: float) -> float:
        """The pixel of a y, from the top; values outside the range are drawn at its edge."""
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (min(max(v, y0), y1) - y0) / (y1 - y0))

    body = []
    for tick in ticks(y0, y1):
        body += [line(LEFT, sy(tick), WIDTH - RIGHT, sy(tick), "grid")]
        body += [text(LEFT - 6, sy(tick) + 4, _written(tick, percent[1]), "tick", "end")]
    for tick in decades(x0, x1) if log_x else ticks(x0, x1):
        body += [line(sx(tick), HEIGHT - BOTTOM, sx(tick), HEIGHT - BOTTOM + 4, "base")]
        body += [text(sx(tick), HEIGHT - BOTTOM + 16, _written(tick, percent[0]), "tick", "middle")]
    body += [
        line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, "axis"),
        text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label, "tick", "middle"),
        f'<g transform="translate(11 {(TOP + HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)">{text(0, 0, y_label, "tick", "middle")}</g>',
    ]
    if diagonal:
        low, high = max(x0, y0), min(x1, y1)
        body.append(line(sx(low), sy(low), sx(high), sy(high), "ideal"))
    if level is not None:
        body.append(line(LEFT, sy(level), WIDTH - RIGHT, sy(level), "ideal"))
    for s in kept:
        body += _drawn(s, sx, sy)
    return svg(WIDTH, HEIGHT, body, label, "chart")


def _drawn(s: Series, sx: Callable[[float], float], sy: Callable[[float], float]) -> list[str]:
    colour, body = f"c{s.index % COLOURS}", []
    if s.low is not None and s.high is not None:
        body += [line(sx(x), sy(a), sx(x), sy(b), f"range {colour}") for x, a, b in zip(s.x, s.low, s.high, strict=True)]
    if s.style != "points" and len(s.x) > 1:
        pick = np.unique(np.linspace(0, len(s.x) - 1, min(len(s.x), POINTS)).astype(int))
        path = "L".join(f"{sx(s.x[i]):.1f} {sy(s.y[i]):.1f}" for i in pick)
        body.append(f'<path class="curve {colour}{" again" if s.style == "dashed" else ""}" d="M{path}"/>')
    if s.style in ("points", "both") or len(s.x) == 1:
        body += [dot(sx(x), sy(y), f"point {colour}", 3.5) for x, y in zip(s.x, s.y, strict=True)]
    return body


def _finite(s: Series, log_x: bool) -> Series:
    x, y = np.asarray(s.x, dtype=np.float64), np.asarray(s.y, dtype=np.float64)
    keep = np.isfinite(x) & np.isfinite(y) & ((x > 0) if log_x else True)
    ends = [None if end is None else np.asarray(end, dtype=np.float64)[keep] for end in (s.low, s.high)]
    ends = [None if end is None else np.where(np.isfinite(end), end, y[keep]) for end in ends]
    return Series(s.name, x[keep], y[keep], s.index, s.style, *ends)


def _span(values: np.ndarray, log: bool = False) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if log:
        return (low / 2, high * 2) if low == high else (low, high)
    if low == high:
        return low - 0.5, high + 0.5
    return low - 0.04 * (high - low), high + 0.04 * (high - low)


def ticks(low: float, high: float) -> list[float]:
    """Three to five round numbers between the limits."""
    rough = (high - low) / 4
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9)
    return [float(v) + 0.0 for v in np.arange(first, last + 1) * step]  # no -0


def decades(low: float, high: float) -> list[float]:
    """Powers of ten between the limits; also 2 and 5 times each, if there are fewer than two."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5)):
        ticks = [f * 10.0**e for e in exponents for f in factors if low * (1 - 1e-9) <= f * 10.0**e <= high * (1 + 1e-9)]
        if len(ticks) >= 2:
            break
    return ticks


def _written(value: float, percent: bool) -> str:
    if percent:
        return f"{100 * value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def dots(
    rows: Sequence[tuple[str, float, float, float]],
    *,
    label: str,
    span: tuple[float, float] = (0.0, 1.0),
    reference: float | None = None,
    index: int = 0,
    percent: bool = True,
) -> str:
    """An SVG of (name, value, low, high), one below the other. reference: a vertical line."""
    widest = max((len(name) for name, *_ in rows), default=0)
    left = min(150, 16 + 7 * widest)
    right, row, top = WIDTH - 50, 24, 6
    height = top + row * len(rows) + 22
    colour = f"c{index % COLOURS}"

    def sx(v: float) -> float:
        """The pixel of a value, from the left; values outside the span are drawn at its edge."""
        return left + (right - left) * (min(max(v, span[0]), span[1]) - span[0]) / (span[1] - span[0])

    body = []
    for tick in ticks(*span):
        body += [line(sx(tick), top, sx(tick), height - 20, "grid")]
        body += [text(sx(tick), height - 6, _written(tick, percent), "tick", "middle")]
    if reference is not None:
        body.append(line(sx(reference), top, sx(reference), height - 20, "ideal"))
    for i, (name, value, low, high) in enumerate(rows):
        y = top + row * i + row / 2
        shown = name if len(name) <= 20 else name[:19] + "…"
        body += [text(left - 8, y + 4, shown, "label", "end"), line(sx(low), y, sx(high), y, f"range {colour}")]
        body += [dot(sx(value), y, f"point {colour}"), text(WIDTH - 2, y + 4, _figure(value, percent), "figure", "end")]
    return svg(WIDTH, height, body, label, "chart")


def _figure(value: float, percent: bool) -> str:
    return f"{100 * value:.1f}" if percent else f"{value:.2f}"
