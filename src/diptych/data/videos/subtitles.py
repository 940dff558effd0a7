"""Subtitles (.srt, .vtt) as what is said in a clip, and when."""

from __future__ import annotations

import html
import re
from typing import Any

SUFFIXES = (".srt", ".vtt")
_TIMES = re.compile(r"(?:(\d+):)?(\d+):(\d+)[.,](\d+)\s*-->\s*(?:(\d+):)?(\d+):(\d+)[.,](\d+)")
_MARKS = re.compile(r"<[^>]*>|\{\\[^}]*\}")  # <i>, <c.yellow>, <00:00:01.000>, {\an8}


def speech(text: str) -> list[dict[str, Any]]:
    """[{text, start, end}] in seconds, in order of time. Lines of one cue are joined; marks are left out, and so are cues without
    words and those that only repeat the words before (as captions that roll do). ValueError if there is no cue.
    """
    cues: list[dict[str, Any]] = []
    blocks = re.split(r"\n\s*\n", text.replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff"))
    for block in blocks:
        lines = block.strip().split("\n")
        at = next((i for i, line in enumerate(lines) if _TIMES.match(line.strip())), None)
        if at is None:
            continue
        match = _TIMES.match(lines[at].strip())
        assert match is not None
        words = " ".join(" ".join(html.unescape(_MARKS.sub("", line)) for line in lines[at + 1 :]).split())
        start, end = _seconds(match.groups()[:4]), _seconds(match.groups()[4:])
        if words and end > start:
            cues.append({"text": words, "start": start, "end": end})
    if not cues:
        raise ValueError("no subtitles: expected lines such as 00:00:01,000 --> 00:00:02,500, and words below them")
    cues.sort(key=lambda cue: float(cue["start"]))
    kept = cues[:1]
    for cue in cues[1:]:
        if cue["text"] == kept[-1]["text"]:
            kept[-1]["end"] = max(kept[-1]["end"], cue["end"])
        else:
            kept.append(cue)
    return kept


def _seconds(parts: tuple[str | None, ...]) -> float:
    hours, minutes, seconds, rest = parts
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(f"{seconds or 0}.{rest or 0}")
