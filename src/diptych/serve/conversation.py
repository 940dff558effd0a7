"""Messages of OpenAI's API as turns and pictures."""

from __future__ import annotations

from typing import Any, NamedTuple

from diptych.core.sample import IMAGE, Turn
from diptych.data.conversations.turns import IMAGE_PARTS, TEXT_PARTS
from diptych.serve.errors import ApiError
from diptych.serve.settings import Settings

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
UNREAD = "<image >"  # a mark that someone typed is text, not the place of a picture
VIDEO_PARTS = ("video_url", "input_video", "video")


class Shown(NamedTuple):
    """A picture or a clip of a conversation, by its URL, and the field that it stands in."""

    url: str
    where: str
    clip: bool


def turns_of(messages: list[Any], settings: Settings) -> tuple[list[Turn], list[Shown]]:
    """The turns, and their pictures and clips in order; a turn's text has ``<image>`` in place of each.

    Messages in a row of one side are one turn; system messages come first. ApiError 400 for anything that is not a conversation.
    """
    turns: list[Turn] = []
    urls: list[Shown] = []
    for k, message in enumerate(messages):
        where = f"messages.{k}"
        if not isinstance(message, dict):
            raise ApiError(400, f"{where}: expected an object with role and content", where)
        role = message.get("role")
        if not isinstance(role, str) or role not in ROLES:
            raise ApiError(400, f"{where}.role: {str(role)[:40]!r}; expected {', '.join(ROLES)}", f"{where}.role")
        if message.get("tool_calls") or message.get("function_call"):
            raise ApiError(400, f"{where}: calls of tools are not read", where)
        text = _content(message.get("content"), f"{where}.content", urls, settings)
        if ROLES[role] != "user" and IMAGE in text:
            raise ApiError(400, f"{where}.content: only the user shows pictures", f"{where}.content")
        if turns and turns[-1].role == ROLES[role]:
            turns[-1] = Turn(ROLES[role], f"{turns[-1].text}\n{text}")
        elif ROLES[role] == "system" and turns:
            raise ApiError(400, f"{where}: a system message comes before all others", f"{where}.role")
        else:
            turns.append(Turn(ROLES[role], text))
    spoken = turns[1:] if turns and turns[0].role == "system" else turns
    if not spoken or spoken[0].role != "user" or spoken[-1].role != "user":
        raise ApiError(400, "messages: expected a question of the user first and last", "messages")
    if len(urls) > settings.max_images:
        raise ApiError(400, f"{len(urls)} pictures; at most {settings.max_images}", "messages")
    return turns, urls


def _content(content: Any, where: str, urls: list[Shown], settings: Settings) -> str:
    """A turn's text with ``<image>`` in place of each picture and clip."""
    if isinstance(content, str):
        content = [content]
    if not isinstance(content, list):
        raise ApiError(400, f"{where}: expected a text or a list of parts", where)
    parts, size = [], 0
    for k, part in enumerate(content):
        at = f"{where}.{k}"
        url, clip = url_of(part, at), clip_url_of(part, at)
        if url is not None or clip is not None:
            of_clip = clip is not None or str(url)[:11].lower() == "data:video/"
            urls.append(Shown(str(clip if url is None else url), at, of_clip))
            parts.append(IMAGE)
            continue
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None
        if not isinstance(text, str) or (isinstance(part, dict) and part.get("type", "text") not in TEXT_PARTS):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise ApiError(400, f"{at}: a part of type {str(kind)[:40]!r}; expected text, image_url or video_url", at)
        size += len(text)
        if size > settings.max_text:
            raise ApiError(400, f"{where}: more than {settings.max_text:,} characters", where)
        parts.append(text.replace(IMAGE, UNREAD))
    return "\n".join(parts)


def url_of(part: Any, where: str) -> str | None:
    """The URL of a part that is a picture, None for another part."""
    if not isinstance(part, dict) or part.get("type", "image_url" if "image_url" in part else None) not in IMAGE_PARTS:
        return None
    held = part.get("image_url", part.get("image"))
    url = held.get("url") if isinstance(held, dict) else held
    if not isinstance(url, str):
        raise ApiError(400, f"{where}: expected {{'type': 'image_url', 'image_url': {{'url': 'data:image/…'}}}}", where)
    return url


def clip_url_of(part: Any, where: str) -> str | None:
    """The URL of a part that is a clip, None for another part."""
    if not isinstance(part, dict) or part.get("type", "video_url" if "video_url" in part else None) not in VIDEO_PARTS:
        return None
    held = part.get("video_url", part.get("video"))
    url = held.get("url") if isinstance(held, dict) else held
    if not isinstance(url, str):
        raise ApiError(400, f"{where}: expected {{'type': 'video_url', 'video_url': {{'url': 'data:video/…'}}}}", where)
    return url
