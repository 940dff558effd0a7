"""A model that talks about several pictures as a model of clips: it is shown the frames of a clip one after the other.

``frames:runs/llava-instruct``, ``frames:MODEL?frames=16``: as conversations about clips are trained, with a mark for each frame. So
models of pictures can be asked the questions of benchmarks of clips, and judged by what they see of the order of frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode

from diptych.core.capabilities import Adapter, Image, Model, Prompt, one_or_many, prompts_for
from diptych.core.errors import DiptychError
from diptych.core.sample import IMAGE, Turn
from diptych.core.streaming import Conversing, Writing
from diptych.data.clips import as_video
from diptych.data.conversations.turns import DESCRIBE
from diptych.inference.foreign.pooled import evenly

SCHEME = "frames:"
FRAMES = 8


def split_address(address: str) -> tuple[str, int]:
    """The address of the model, and the number of frames; other options stay with the model. DiptychError for a wrong one."""
    place, _, query = address.removeprefix(SCHEME).partition("?")
    if not place:
        raise DiptychError(f"'{address}' has no model; expected {SCHEME}MODEL, such as {SCHEME}runs/llava-instruct")
    given = parse_qsl(query, keep_blank_values=True)
    count = dict(given).get("frames", str(FRAMES))
    if not count.isdigit() or int(count) < 1:
        raise DiptychError(f"'{address}': frames must be a whole number from 1 on, not '{count}'")
    others = [(name, value) for name, value in given if name != "frames"]
    return place + (f"?{urlencode(others, safe=':/,')}" if others else ""), int(count)


def expanded(turns: Sequence[Turn], shown: Sequence[Image], most: int = FRAMES) -> tuple[list[Turn], list[Image]]:
    """A conversation with clips, [frames, height, width, 3], as one about pictures: at most ``most`` frames of each, evenly spread
    and the same backwards, and a mark for each in place of the clip's.
    """
    parts = [
        [image] if getattr(image, "ndim", 3) == 3 else [as_video(image, "clip").frames[i] for i in evenly(len(image), most)]
        for image in shown
    ]
    left, result = iter(parts), []
    for turn in turns:
        first, *rest = turn.text.split(IMAGE)
        marked = (IMAGE * len(next(left, ())) + text for text in rest)
        result.append(Turn(turn.role, first + "".join(marked)))
    return result, [frame for part in parts for frame in part]


class FramesModel(Adapter):
    """A model that talks about several pictures, and is shown clips, uint8 [frames, height, width, 3]. frames: at most so many of
    each.
    """

    shows = "video"

    def __init__(self, base: Model, frames: int = FRAMES):
        if getattr(base, "shows", "image") == "video":
            raise DiptychError(f"{base.name} reads clips itself; {SCHEME} is for models of pictures")
        if not {"generate", "prompt"} <= base.capabilities or not isinstance(base, Conversing):
            raise DiptychError(f"{base.name} does not talk about several pictures; {SCHEME} is for models such as llava-instruct")
        self.base, self.frames, self.name = base, frames, f"{SCHEME}{base.name}?frames={frames}"
        self.capabilities = frozenset({"generate", "prompt"} | (base.capabilities & {"decoding"}))
        key = getattr(base, "key", None)
        self.key = None if key is None else f"{key} frames {frames}"

    def generate(self, images: Sequence[Image], prompt: Prompt = "", max_tokens: int = 32, **decoding: Any) -> list[str]:
        """One text for each clip, or answer to the prompt."""
        images = one_or_many(images)
        asked = [Turn("user", f"{IMAGE}\n{text or DESCRIBE}") for text in prompts_for(prompt, len(images))]
        return [self.converse([clip], [turn], max_tokens, **decoding) for clip, turn in zip(images, asked, strict=True)]

    def converse(self, images: Sequence[Image], turns: Sequence[Turn], max_tokens: int = 128, **decoding: Any) -> str:
        """The next turn of a conversation; a clip or a picture for each ``<image>``."""
        said, shown = expanded(turns, images, self.frames)
        answer: str = self.base.converse(shown, said, max_tokens, **decoding)
        return answer

    def stream(self, images: Sequence[Image], turns: Sequence[Turn], max_tokens: int = 128, **decoding: Any) -> Writing:
        """The same, piece by piece."""
        said, shown = expanded(turns, images, self.frames)
        writing: Writing = self.base.stream(shown, said, max_tokens, **decoding)
        return writing
