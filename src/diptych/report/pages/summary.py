"""One page for a talk: the main results with intervals and chance, as a picture and as a PDF, drawn without a browser."""

from __future__ import annotations

import textwrap
from functools import partial
from pathlib import Path
from typing import Any

from diptych.core.extras import need
from diptych.core.files import write_atomically
from diptych.report.columns import Column, amount, columns, number, seconds, standing
from diptych.report.drawing.marks import COLOURS
from diptych.report.pages.page import budget
from diptych.report.read import Comparison, Recipe, load
from diptych.report.words import plain_words

NAMES = ("summary.png", "summary.pdf")
SIZE, DOTS = (12.8, 7.2), 150  # inches of a 16:9 slide, dots per inch of the picture
PAPER, INK, SOFT, HAIR = "#fcfcfa", "#1c1f24", "#5b6169", "#dcdedb"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#b5608f", "#b87a00", "#2f93cc", "#5b6169")  # as --c0 … of page.css
SHAPES = "osD^vPX"  # a shape with each colour
MOST = 8  # measures, and recipes in the list of costs


def write_summary(directory: Path, out: Path | None = None) -> list[Path]:
    """Writes ``summary.png`` and ``summary.pdf`` of a comparison, a run or an evaluation into ``out`` (default: the directory).
    Returns their paths. Raises DiptychError if matplotlib (extra ``report``) is missing.
    """
    _drawing("matplotlib")
    comparison = load(Path(directory))
    drawn = draw(comparison)
    paths = [(out or Path(directory)) / name for name in NAMES]
    for path in paths:
        write_atomically(path, partial(_save, drawn, path.suffix[1:]))
    return paths


def _drawing(module: str) -> Any:
    return need(module, extra="report", what="a summary page")


def _save(drawn: Any, kind: str, path: Path) -> None:
    """Writes the page; the same results give the same file."""
    metadata = {"CreationDate": None} if kind == "pdf" else {}
    drawn.savefig(path, format=kind, dpi=DOTS, facecolor=PAPER, metadata=metadata)


def draw(comparison: Comparison) -> Any:
    """The page as a matplotlib figure."""
    with _drawing("matplotlib").rc_context({"font.family": ["DejaVu Sans"], "text.color": INK, "pdf.fonttype": 42}):
        page = _drawing("matplotlib.figure").Figure(figsize=SIZE)
        _drawing("matplotlib.backends.backend_agg").FigureCanvasAgg(page)
        page.text(
            0.045, 0.905, comparison.title, fontsize=26, fontfamily="DejaVu Serif", fontweight="bold", va="center", parse_math=False
        )
        words = _short(plain_words(comparison).replace("**", ""), 330)
        page.text(
            0.045, 0.855, "\n".join(textwrap.wrap(words, 128)[:3]), fontsize=11.5, va="top", linespacing=1.5, parse_math=False
        )
        shown, left = chosen(comparison)
        measured = [r for r in comparison.recipes if any(c.key in r.measures for c in shown)]
        if shown:
            _dots(page.add_axes((0.245, 0.17, 0.44, 0.54)), comparison, shown)
        else:
            page.text(0.245, 0.45, "Nothing has been measured yet.", fontsize=14, color=SOFT)
        _list(page, comparison, measured)
        _foot(page, comparison, left)
    return page


def chosen(comparison: Comparison) -> tuple[list[Column], int]:
    """The measures of the page, those of the main table that most recipes have, in its order; and how many others there are."""
    every = [c for c in columns(comparison) if c.share]
    have = {c.key: sum(c.key in r.measures for r in comparison.recipes) for c in every}
    most = sorted(every, key=lambda c: -have[c.key])[:MOST]
    return [c for c in every if c in most], len(every) - len(most)


def _dots(axes: Any, comparison: Comparison, shown: list[Column]) -> None:
    """A row for each measure: a mark with its interval for each model, and a line at chance."""
    count = len(comparison.recipes)
    for row, column in enumerate(shown):
        tied = {r.name for r in standing(comparison, column.key).tied}
        if column.chance is not None:
            axes.plot([100 * column.chance] * 2, [row - 0.42, row + 0.42], color=INK, linewidth=1.2, linestyle=(0, (2, 2)))
        for index, recipe in enumerate(comparison.recipes):
            measure = recipe.measures.get(column.key)
            if measure is None:
                continue
            y = row + (index - (count - 1) / 2) * min(0.16, 0.7 / max(count, 1))
            colour = PALETTE[index % COLOURS]
            if measure.bounded:
                axes.plot([100 * measure.low, 100 * measure.high], [y, y], color=colour, linewidth=2, solid_capstyle="round")
            best = recipe.name in tied and count > 1
            axes.plot(100 * measure.value, y, SHAPES[index % len(SHAPES)], color=colour, markersize=9 if best else 6.5,
                      markeredgecolor=INK if best else colour, markeredgewidth=1.3)  # fmt: skip
    axes.set_yticks(range(len(shown)), [_short(c.name, 42) for c in shown], fontsize=10)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel(
        "per cent, with 95 % intervals; dashed: chance; ringed: the best, and what does not differ from it",
        fontsize=9.5,
        color=SOFT,
    )
    axes.set_facecolor(PAPER)
    axes.grid(axis="x", color=HAIR, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=INK)
    for side in axes.spines.values():
        side.set_visible(False)


def _list(page: Any, comparison: Comparison, measured: list[Recipe]) -> None:
    """The models with their marks and what they cost, at the right."""
    marker = _drawing("matplotlib.lines").Line2D
    y = 0.70
    for index, recipe in enumerate(comparison.recipes[:MOST]):
        mark = marker([0.735], [y], marker=SHAPES[index % len(SHAPES)], color=PALETTE[index % COLOURS], markersize=9, linestyle="")
        page.add_artist(mark)
        page.text(0.752, y, _short(recipe.label, 28), fontsize=12.5, fontweight="bold", va="center", parse_math=False)
        spent = recipe.spent
        facts = [
            f"{amount(spent['parameters'])} parameters" if "parameters" in spent else "",
            f"{amount(spent['samples'])} samples" if "samples" in spent else "",
            seconds(spent["seconds"]) if "seconds" in spent else "",
        ]
        line = ", ".join(f for f in facts if f) if recipe in measured else "no results"
        page.text(0.752, y - 0.03, line, fontsize=9.5, color=SOFT, va="center", parse_math=False)
        y -= 0.068
    if len(comparison.recipes) > MOST:
        page.text(0.752, y, f"… and {len(comparison.recipes) - MOST} more", fontsize=10, color=SOFT, va="center")


def _foot(page: Any, comparison: Comparison, left: int) -> None:
    seeds = len(comparison.seeds)
    facts = [
        f"Data {comparison.data}" if comparison.data else "",
        f"fingerprint {comparison.data_fingerprint[:12]}" if comparison.data_fingerprint else "",
        f"budget {budget(comparison.budget)}" if comparison.budget else "",
        f"{seeds} seeds" if seeds > 1 else "",
        f"{number(left, share=False).split('.')[0]} more measures in the report" if left else "",
        comparison.created[:10],
    ]
    page.text(
        0.045, 0.055, _short("  ·  ".join(f for f in facts if f), 170), fontsize=9.5, color=SOFT, va="center", parse_math=False
    )
    page.text(0.955, 0.055, "Diptych", fontsize=11, color=SOFT, va="center", ha="right", fontfamily="DejaVu Serif")


def _short(text: str, letters: int) -> str:
    """The text, cut at the end of a sentence or a word if it is longer."""
    if len(text) <= letters:
        return text
    cut = text[:letters]
    sentence = cut.rfind(". ")
    return cut[: sentence + 1] if sentence > letters // 2 else f"{cut.rsplit(' ', 1)[0].rstrip(',;')} …"
