"""The figures of a curation report: funnel, histograms with thresholds, counts before and after."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diptych.core.errors import counted
from diptych.report.drawing.charts import ticks
from diptych.report.drawing.marks import escape, line, svg, text

BINS = 48


def funnel(rows: int, steps: Sequence[tuple[str, int]]) -> str:
    """An SVG of the rows that are left after each (reason, rows that it removed)."""
    width, bar, gap, left, right = 760, 20, 8, 250, 150
    body, remaining, y = [], rows, 4.0
    for reason, removed in [("all rows", 0), *steps]:
        before, remaining = remaining, remaining - removed
        scale = (width - left - right) / max(1, rows)
        body.append(
            text(left - 10, y + 14, reason if len(reason) < 38 else reason[:37] + "…", "strong" if not removed else "", "end")
        )
        body.append(
            f'<rect class="lost" x="{left + remaining * scale:.1f}" y="{y:.1f}" '
            f'width="{(before - remaining) * scale:.1f}" height="{bar}"/>'
        )
        body.append(f'<rect class="left" x="{left}" y="{y:.1f}" width="{remaining * scale:.1f}" height="{bar}"/>')
        label_text = f"{remaining:,}" + (f"  (−{removed:,})" if removed else "")
        body.append(text(left + before * scale + 8, y + 14, label_text, "tick strong"))
        y += bar + gap
    label = f"{remaining:,} of {counted(rows, 'row')} left: " + ", ".join(f"{reason} removes {n:,}" for reason, n in steps)
    return svg(width, y, body, label, "funnel")


def histogram(values: np.ndarray, kept: np.ndarray, thresholds: Sequence[float], label: str) -> str:
    """An SVG histogram: kept rows below, dropped rows stacked above; thresholds as vertical lines."""
    width, height, left, right, top, bottom = 340, 190, 44, 12, 22, 28
    low, high, clipped = _span(values, thresholds)
    whole = bool(np.all(values == np.round(values)))
    bins = int(min(BINS, high - low + 1)) if whole else BINS
    edges = np.linspace(low - 0.5, high + 0.5, bins + 1) if whole and high - low < BINS else np.linspace(low, high, bins + 1)
    inside = np.clip(values, edges[0], edges[-1])
    counts = np.histogram(inside, edges)[0]
    stay = np.histogram(inside[kept], edges)[0]
    peak = max(1, int(counts.max()))

    def sx(v: float) -> float:
        """The pixel of a value, from the left."""
        return float(left + (width - left - right) * (v - edges[0]) / (edges[-1] - edges[0]))

    def sy(n: float) -> float:
        """The pixel of a count, from the top."""
        return top + (height - top - bottom) * (1 - n / peak)

    body = []
    for tick in ticks(0, peak):
        if tick == int(tick):
            body += [
                line(left, sy(tick), width - right, sy(tick), "grid"),
                text(left - 6, sy(tick) + 4, f"{tick:,.0f}", "tick", "end"),
            ]
    for a, b, n, k in zip(edges[:-1], edges[1:], counts, stay, strict=True):
        x, w = sx(a) + 0.4, max(0.6, sx(b) - sx(a) - 0.8)
        if n > k:
            body.append(f'<rect class="lost" x="{x:.1f}" y="{sy(n):.1f}" width="{w:.1f}" height="{sy(k) - sy(n):.1f}"/>')
        if k:
            body.append(f'<rect class="left" x="{x:.1f}" y="{sy(k):.1f}" width="{w:.1f}" height="{sy(0) - sy(k):.1f}"/>')
    for tick in ticks(float(edges[0]), float(edges[-1])):
        number_text = f"{tick:,.0f}" if abs(tick) >= 1000 else f"{tick:.3g}"
        more = "+" if clipped and tick >= high - 1e-9 else ""
        body.append(text(sx(tick), height - 10, number_text + more, "tick", "middle"))
    for threshold in thresholds:
        x = sx(float(np.clip(threshold, edges[0], edges[-1])))
        anchor = "end" if x > width * 0.7 else "start"
        number_text = f"{threshold:,.0f}" if abs(threshold) >= 1000 else f"{threshold:.4g}"
        body += [
            line(x, top - 6, x, height - bottom, "limit"),
            text(x + (-4 if anchor == "end" else 4), top - 8, number_text, "tick strong", anchor),
        ]
    return svg(width, height, body, label, "chart")


def _span(values: np.ndarray, thresholds: Sequence[float]) -> tuple[float, float, bool]:
    """The range from the minimum to the 99th percentile, with the thresholds; values beyond are counted at the end."""
    high_all = float(values.max())
    high = max(float(np.quantile(values, 0.99)), *thresholds) if thresholds else float(np.quantile(values, 0.99))
    high = high_all if high >= 0.8 * high_all or high_all <= high else high
    low = min(float(values.min()), *thresholds) if thresholds else float(values.min())
    return (low, high, high < high_all) if high > low else (low - 0.5, low + 0.5, False)


def before_after(names: Sequence[str], before: Sequence[int], after: Sequence[int], label: str) -> str:
    """An SVG with a bar for each name: its length is the count before, the filled part the count after."""
    width, bar, gap, left, right = 520, 15, 6, 150, 110
    peak, y, body = max(1, *before), 2.0, []
    for name, was, now in zip(names, before, after, strict=True):
        scale = (width - left - right) / peak
        body.append(text(left - 8, y + 12, name if len(name) < 22 else name[:21] + "…", "", "end"))
        body.append(
            f'<rect class="lost" x="{left + now * scale:.1f}" y="{y:.1f}" width="{(was - now) * scale:.1f}" height="{bar}"/>'
        )
        body.append(f'<rect class="left" x="{left}" y="{y:.1f}" width="{now * scale:.1f}" height="{bar}"/>')
        body.append(text(left + was * scale + 6, y + 12, f"{was:,} → {now:,}", "tick"))
        y += bar + gap
    return svg(width, y, body, label, "chart wide")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], label: str) -> str:
    """An HTML table; cells are HTML, the first of each row is its heading."""
    from diptych.report.drawing.marks import scroller

    top = "".join(f'<th scope="col"><span class="plain">{escape(h)}</span></th>' for h in head)
    body = "".join(f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows)
    return scroller(f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>", label)
