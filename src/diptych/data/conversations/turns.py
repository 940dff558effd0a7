"""The formats of conversations, converted to turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diptych.core.sample import IMAGE, Turn

ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}


DESCRIBE = "describe the picture."  # what the empty prompt asks, and what a caption alone answers


class Mistake(ValueError):  # noqa: N818 - an outcome of reading one conversation
    """What is wrong with one conversation; the caller adds its file and id to the message."""


def turns_of(given: Any) -> list[Turn]:
    """LLaVA's ``[{from, value}]``, or ``[{role, content}]`` with a text or a list of parts (``{type: text, text}``, ``{type:
    image}``) as content.
    """
    if not isinstance(given, (list, tuple)) or not given:
        raise Mistake(f"no turns: expected a list of them, found {type(given).__name__}")
    turns = []
    for k, turn in enumerate(given, 1):
        if not isinstance(turn, dict):
            raise Mistake(f"turn {k}: expected {{role, content}} or {{from, value}}, found {type(turn).__name__}")
        said = turn.get("role", turn.get("from"))
        if said not in ROLES:
            raise Mistake(f"turn {k}: role {said!r}; expected {', '.join(ROLES)}")
        turns.append(Turn(ROLES[said], _text(turn.get("content", turn.get("value")), k)))
    _check_order(turns)
    return turns


def _text(content: Any, k: int) -> str:
    """The text of a turn, with ``<image>`` in place of each image."""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        raise Mistake(f"turn {k}: expected a text or a list of parts, found {type(content).__name__}")
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(part, str):
            parts.append(part)
        elif kind == "text" and isinstance(part.get("text"), str):
            parts.append(part["text"])
        elif kind in ("image", "image_url"):
            parts.append(IMAGE)
        else:
            raise Mistake(f"turn {k}: a part of type {kind!r}; expected text or image")
    return "\n".join(parts)


def _check_order(turns: Sequence[Turn]) -> None:
    """Checks that the turns are an optional system turn, then user and assistant alternately."""
    spoken = turns[1:] if turns[0].role == "system" else turns
    for k, turn in enumerate(spoken):
        expected = "assistant" if k % 2 else "user"
        if turn.role != expected:
            raise Mistake(f"turn {k + 1 + len(turns) - len(spoken)}: expected the {expected}'s, found the {turn.role}'s")


def question(text: str, images: int = 1) -> Turn:
    """A user's first turn about images, in the form that models are trained on."""
    return Turn("user", f"{IMAGE}\n" * images + text)


def captioned(caption: str) -> list[Turn]:
    """A caption as the answer to the one question that it answers."""
    return [question(DESCRIBE), Turn("assistant", caption)]


def check_images(turns: Sequence[Turn], images: int) -> None:
    """As many ``<image>`` as images."""
    places = sum(turn.text.count(IMAGE) for turn in turns)
    if images and not places:
        raise Mistake(f"missing {IMAGE}: it has {images} image{'s' * (images > 1)}, but no turn says where")
    if places != images:
        raise Mistake(f"image count mismatch: {places} times {IMAGE} in its turns, {images} image{'s' * (images != 1)} given")
