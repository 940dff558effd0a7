"""Progress on a terminal: one display at a time draws."""

from __future__ import annotations

import pytest
from rich.console import Console

from diptych.core.progress import CountDisplay, JobsDisplay, TrainingDisplay


def test_a_count_within_a_training_does_not_redraw_the_terminal_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Console, "is_terminal", True)
    assert CountDisplay("pictures", 3).live
    with pytest.raises(ValueError), TrainingDisplay("clip"):
        assert JobsDisplay.shown == 1 and not CountDisplay("pictures", 3).live
        raise ValueError
    assert JobsDisplay.shown == 0 and CountDisplay("pictures", 3).live


def test_without_a_terminal_nothing_is_redrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Console, "is_terminal", False)
    with TrainingDisplay("clip"):
        assert JobsDisplay.shown == 0 and not CountDisplay("pictures", 3).live
