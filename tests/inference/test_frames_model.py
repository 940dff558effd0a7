"""A model that talks about several pictures is asked about clips: ``frames:MODEL``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diptych.core.capabilities import Adapter
from diptych.core.errors import DiptychError
from diptych.core.sample import Turn
from diptych.inference.foreign.frames import FramesModel, expanded, split_address
from diptych.inference.foreign.pooled import PooledModel
from serve_fixture import Asker, Colours, Parrot


def clip(n: int) -> np.ndarray:
    """Frame k is of width k + 1."""
    return np.arange(n, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 3), np.uint8)


class Told(Adapter):
    """Answers with the numbers of its pictures and what it was told."""

    name, key = "told", "k1"
    capabilities = frozenset({"generate", "prompt", "decoding"})

    def converse(self, images: Any, turns: Any, max_tokens: int = 128, **decoding: Any) -> str:
        return f"{[int(i[0, 0, 0]) for i in images]} {turns[-1].text!r} {max_tokens} {decoding}"

    def stream(self, images: Any, turns: Any, max_tokens: int = 128, **decoding: Any) -> Any:
        return self.converse(images, turns, max_tokens, **decoding)


def test_frames_take_the_place_of_the_clip() -> None:
    turns = [Turn("user", "a <image> b <image>"), Turn("assistant", "c"), Turn("user", "<image>d")]
    said, shown = expanded(turns, [clip(3), clip(1)[0], clip(20)], 4)
    assert [t.text for t in said] == ["a <image><image><image> b <image>", "c", "<image><image><image><image>d"]
    assert [int(i[0, 0, 0]) for i in shown] == [0, 1, 2, 0, 2, 7, 12, 17]
    back = expanded([Turn("user", "<image>")], [clip(20)[::-1]], 4)[1]
    assert [int(i[0, 0, 0]) for i in back] == [17, 12, 7, 2], "the same frames of a clip that runs backwards"


def test_it_writes_about_clips() -> None:
    model = FramesModel(Told(), 2)
    assert (model.shows, model.key, model.name) == ("video", "k1 frames 2", "frames:told?frames=2")
    first, second = model.generate([clip(4), clip(2)], ["one?", ""], 7, temperature=0.5)
    assert first == "[1, 2] '<image><image>\\none?' 7 {'temperature': 0.5}"
    assert second.startswith("[0, 1] '<image><image>\\ndescribe")
    assert model.stream([clip(4)], [Turn("user", "<image>x")]).startswith("[1, 2] '<image><image>x'")


def test_what_is_no_such_model() -> None:
    assert split_address("frames:runs/a?frames=3&checkpoint=best") == ("runs/a?checkpoint=best", 3)
    assert split_address("frames:runs/a") == ("runs/a", 8)
    for address, message in (("frames:", "has no model"), ("frames:a?frames=0", "from 1 on"), ("frames:a?frames=x", "from 1 on")):
        with pytest.raises(DiptychError, match=message):
            split_address(address)
    for base, message in ((Asker(), "does not talk"), (Colours(), "does not talk"), (PooledModel(Colours()), "reads clips itself")):
        with pytest.raises(DiptychError, match=message):
            FramesModel(base)
    assert FramesModel(Parrot()).capabilities == {"generate", "prompt", "decoding"}
