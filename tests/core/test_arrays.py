"""Small helpers of the core: vectors of unit length, numbers in messages, how a process ended."""

from __future__ import annotations

import signal

import numpy as np
import pytest

from diptych.core.arrays import unit_rows
from diptych.core.errors import counted
from diptych.core.signals import how_it_ended


def test_unit_rows() -> None:
    found = unit_rows(np.array([[3, 4], [0, 0]], np.float32))
    assert found.dtype == np.float32 and found.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 0]]
    assert unit_rows(np.array([5, 12]), np.float64).tolist() == [pytest.approx(5 / 13), pytest.approx(12 / 13)]


def test_how_a_process_ended() -> None:
    assert [how_it_ended(s) for s in (0, 3, -signal.SIGKILL, -200)] == [
        "exit status 0", "exit status 3", "killed by SIGKILL", "killed by signal 200",
    ]  # fmt: skip


def test_a_number_with_its_noun() -> None:
    assert [counted(n, "row") for n in (0, 1, 2, 2000, 1.0)] == ["0 rows", "1 row", "2 rows", "2,000 rows", "1 row"]
    assert [counted(n, "class", "classes") for n in (1, 3)] == ["1 class", "3 classes"]
