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
TURN_KEYS = ("role", "from", "content", "value")
CALLS = ("tool_calls", "function_call")  # of a turn: without them, the answer would be learned as if nothing was called
TEXT_PARTS = ("text", "input_text", "output_text")
IMAGE_PARTS = ("image", "image_url", "input_image")
DESCRIBE = "describe the picture."  # what the empty prompt asks, and what a caption alone answers


class Mistake(ValueError):  # noqa: N818 - an outcome of reading one conversation
    """What is wrong with one conversation; the caller adds its file and id to the message."""


def turns_of(given: Any) -> list[Turn]:
    """LLaVA's ``[{from, value}]``, or ``[{role, content}]`` with a text or a list of parts as content: ``{type: text, text}``,
    ``{type: image}``, and the forms that hold the image (``images_in``).
    """
    if not isinstance(given, (list, tuple)) or not given:
        raise Mistake(f"no turns: expected a list of them, found {type(given).__name__}")
    turns = []
    for k, turn in enumerate(given, 1):
        if not isinstance(turn, dict):
            raise Mistake(f"turn {k}: expected {{role, content}} or {{from, value}}, found {type(turn).__name__}")
        name = turn.get("role", turn.get("from"))
        if name not in ROLES:
            raise Mistake(f"turn {k}: role {name!r}; expected {', '.join(ROLES)}")
        if called := next((key for key in CALLS if turn.get(key)), None):
            raise Mistake(f"turn {k}: {called} is not read; turns have texts and images")
        turns.append(Turn(ROLES[name], _text(turn.get("content", turn.get("value")), k)))
    _check_order(turns)
    return turns


def images_in(given: Any) -> list[Any]:
    """The images that the parts of the turns hold, in order: paths, URLs, ``data:`` URLs, bytes or ``{bytes, path}``. Parts may be
    Qwen's ``{type: image, image}`` or ``{image}``, OpenAI's ``{type: image_url, image_url: {url}}``, ``{type: input_image,
    image_url}``, Anthropic's ``{type: image, source: {data}}``, or ``{type: image, url or path}``. A part without image has it in
    the row's ``images``.
    """
    contents = (turn.get("content", turn.get("value")) for turn in given if isinstance(turn, dict))
    parts = (part for content in contents if isinstance(content, (list, tuple)) for part in content if isinstance(part, dict))
    held = (_held(part) for part in parts if _kind(part) in IMAGE_PARTS)
    return [image for image in held if image]


def unread_keys(given: Any) -> set[str]:
    """Keys of turns that hold something and are not read."""
    turns = [turn for turn in given if isinstance(turn, dict)]
    return {key for turn in turns for key, value in turn.items() if value not in (None, "", [], {}) and key not in TURN_KEYS}


def _held(part: dict[str, Any]) -> Any:
    image = next((part[key] for key in ("image", "image_url", "source", "url", "path") if part.get(key)), None)
    if isinstance(image, dict) and image.get("url"):
        return image["url"]
    if isinstance(image, dict) and isinstance(image.get("data"), str):
        return f"data:image;base64,{image['data']}"
    return image


def _kind(part: Any) -> str | None:
    """What a part is, also if it does not say so."""
    if not isinstance(part, dict):
        return None
    kind = part.get("type")
    return kind if isinstance(kind, str) else next((key for key in ("image", "image_url", "text") if part.get(key)), None)


def _text(content: Any, k: int) -> str:
    """The text of a turn, with ``<image>`` in place of each image."""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        raise Mistake(f"turn {k}: expected a text or a list of parts, found {type(content).__name__}")
    parts = []
    for part in content:
        kind = _kind(part)
        if isinstance(part, str):
            parts.append(part)
        elif kind in TEXT_PARTS and isinstance(part.get("text"), str):
            parts.append(part["text"])
        elif kind in IMAGE_PARTS:
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
