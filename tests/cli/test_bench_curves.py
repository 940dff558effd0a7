"""The tables of ``bench.curves``, and the conclusions of ``bench.shuffled``."""

from __future__ import annotations

import numpy as np
import pytest

from bench.curves import table
from bench.shuffled import CLASSES, drawn, summary


def test_the_table_has_a_mean_over_draws_and_says_how_many() -> None:
    rng = np.random.default_rng(0)
    cells = [
        {"way": way, "shots": k, "seed": seed, "correct": "".join(str(int(c)) for c in rng.random(400) < share)}
        for way, share in (("a", 0.2), ("b", 0.8))
        for k in (1, 4)
        for seed in range(3 if k == 1 else 4)
    ]
    lines = table(cells).splitlines()
    assert lines[0] == "| way | 1 | 4 | draws |" and lines[2].startswith("| `a` |") and lines[3].endswith("| 3 to 4 |")
    want = np.mean([[c == "1" for c in cell["correct"]] for cell in cells if (cell["way"], cell["shots"]) == ("b", 4)])
    low, high = (float(x) for x in lines[3].split("|")[3].split("[")[1].split("]")[0].split(","))
    assert f"{100 * want:.1f} [" in lines[3] and low < 100 * want < high < low + 15


def test_shuffled_labels_say_nothing_of_the_vectors() -> None:
    shares = []
    for seed in range(20):
        data = drawn(seed)
        assert data.test_x is not None and data.test_y is not None
        shares.append(float((data.test_x @ data.support.texts.T).argmax(1).__eq__(data.test_y).mean()))
    assert np.mean(shares) == pytest.approx(1 / CLASSES, abs=0.03)
    row = {"seed": 0, "false": True, "test": {"probe": 0.3}, "cross_validation": {"probe": 0.9}}
    text = summary([row, {**row, "seed": 1, "false": False, "cross_validation": {"probe": 0.8}}])
    assert "1 false winners (seeds [0])" in text and "chance: probe" in text
