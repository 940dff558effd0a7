"""Samples: equality by value, and copies with other fields."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diptych.core.sample import IMAGE, Captions, Conversation, Document, Label, Region, Sample, Turn, Video, captioned


def picture(seed: int = 0, kind: Any = np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (4, 5, 3)).astype(kind)


def made(**changes: Any) -> Sample:
    """Made anew each time, so that no two samples share an object."""
    values = {
        "image": picture(),
        "text": captioned(["a", "b"], ["m", "n"]),
        "negatives": ["c", ""],
        "label": Label(1, "cat"),
        "regions": [Region((0.0, 1.0, 2.0, 3.0), "part")],
        "turns": Conversation([Turn("user", IMAGE), Turn("assistant", "x")], [picture(1)]),
        "video": Video([picture(2), picture(3)], [0.0, 0.5]),
        "document": Document(["before", picture(4)]),
    }
    return Sample("id", {"boxes": np.eye(2), "n": [1, {"k": picture(5)}]}, **values | changes)


def test_samples_of_equal_values_are_equal_arrays_and_all() -> None:
    assert made() == made() and made() != made().with_(id="other") and made() != "id"
    assert made() == made().with_() and made().with_(text=None) != made()


@pytest.mark.parametrize(
    "change",
    [
        {"image": picture(9)},
        {"image": picture()[:3]},
        {"image": picture(kind=np.int64)},
        {"image": picture().tolist()},
        {"text": Captions(["a", "b"], ["m", "other"])},
        {"label": Label(1, "dog")},
        {"regions": [Region((0.0, 1.0, 2.0, 4.0), "part")]},
        {"turns": Conversation([Turn("user", IMAGE), Turn("assistant", "x")], None)},
        {"turns": Conversation([Turn("user", IMAGE), Turn("assistant", "x")], [picture(9)])},
        {"video": Video([picture(2)], [0.0])},
        {"document": Document([picture(4), "before"])},
    ],
)
def test_one_other_value_makes_a_sample_unequal(change: dict[str, Any]) -> None:
    assert made(**change) != made() and made() != made(**change) and made(**change) == made(**change)


def test_other_extras_make_a_sample_unequal() -> None:
    assert made().with_(extra={"boxes": np.eye(2), "n": [1, {"k": picture(6)}]}) != made()
    assert made().with_(extra={}) != made()
