"""The frame of a report and its charts, as other reports use them."""

from __future__ import annotations

import re

import numpy as np
import pytest

from diptych.report.drawing.charts import Series, chart, decades, ticks
from diptych.report.drawing.document import Page, Section, document
from report_fixture import Page as Parsed


def test_a_document_of_several_pages() -> None:
    pages = [
        Page("overview", "Overview", [Section("a", "First", "<p>1</p>"), Section("none", "Empty", "")]),
        Page("task-x", "x <y>", [Section("b", "Second", "<p>2</p>")], lead="<p>lead</p>", mark="2 warnings"),
    ]
    html = document("A & B", [("Data", "<d>"), ("Empty", "")], pages)
    page = Parsed(html)
    assert page.wrong == [] and page.open == []
    identifiers = [value for _, name, value in page.attributes if name == "id"]
    assert {"overview", "task-x", "a", "b"} <= set(identifiers) and "none" not in identifiers
    hrefs = {value for tag, name, value in page.attributes if (tag, name) == ("a", "href")}
    assert {"#overview", "#task-x"} <= hrefs and all(h[1:] in identifiers for h in hrefs)
    text = " ".join(page.text)
    assert "x <y>" in text and "2 warnings" in text and "<d>" in text and "Empty" not in text


def test_a_document_of_one_page_lists_its_sections() -> None:
    html = document("T", [], [Page("only", "Only", [Section("a", "First", "x"), Section("b", "Second", "y")])])
    assert '<nav aria-label="Sections">' in html and 'href="#b"' in html


def numbers(path: str) -> np.ndarray:
    return np.array(re.findall(r"-?[\d.]+", path), dtype=float).reshape(-1, 2)


def test_a_curve_is_drawn_to_scale() -> None:
    drawn = chart([Series("s", [1, 10, 100], [0.0, 0.5, 1.0])], "x", "y", label="three", log_x=True, y_range=(0, 1))
    points = numbers(re.search(r'<path class="curve[^"]*" d="([^"]+)"', drawn)[1])  # type: ignore[index]
    assert points[1] == pytest.approx(points[[0, 2]].mean(0), abs=0.1), "equal steps on a log axis"
    assert points[0, 1] > points[2, 1], "up is more"
    assert 'aria-label="three"' in drawn


def test_points_that_are_no_numbers_are_left_out() -> None:
    series = Series("s", [0.1, np.nan, 0.3, 0.4], [1.0, 2.0, np.nan, 4.0], style="points", low=[0.5] * 4, high=[1.5] * 4)
    drawn = chart([series], "x", "y", label="l")
    assert drawn.count("<circle") == drawn.count('class="range') == 2
    assert chart([Series("s", [np.nan], [1.0])], "x", "y", label="l") == ""


def test_ticks_are_round() -> None:
    assert ticks(0, 1) == pytest.approx([0, 0.5, 1]) or ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert decades(3, 20_000) == pytest.approx([10, 100, 1000, 10_000])
    assert decades(2, 6) == pytest.approx([2, 5])
