"""Files that describe the clips of a data set, recognised by their content.

COCO-like JSON (``videos`` or ``images``, and ``annotations`` with ``video_id`` and ``caption``), MSR-VTT's JSON (``videos`` and
``sentences``), ActivityNet Captions' JSON ({name: {duration, timestamps, sentences}}), conversations in LLaVA's form with
``video``, WebVid's CSV (videoid, page_dir, name), and tables of paths and captions. Names of clips need no ending.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from diptych.core.errors import DiptychError
from diptych.data.conversations.turns import turns_of
from diptych.data.source import Problem
from diptych.data.sources.base import IMAGE_COLUMNS, Entry, Names, texts
from diptych.data.sources.table import read_csv, table_entries
from diptych.data.storage import files

ENDINGS = (".json", ".jsonl", ".csv", ".tsv")
COLUMNS = ("video", "video_path", "clip", *IMAGE_COLUMNS)
WEBVID = ("videoid", "name")
PARTS = {"train": "train", "training": "train", "validate": "validation", "validation": "validation", "val": "validation"}
PARTS |= {"val_1": "validation", "val_2": "validation", "test": "test", "testing": "test"}
MARK = "<video>"


class Clips:
    """Clips below a directory by the names that data sets give them: with or without ending, with or without folders."""

    def __init__(self, directory: str, clips: list[str], folders: Mapping[str, list[str]]):
        self.directory, self.folders = directory, folders
        self._known: dict[str, str] = {}
        for path in [*clips, *folders]:
            stem = posixpath.splitext(path)[0] if path not in folders else path
            for name in (posixpath.basename(stem), posixpath.basename(path), stem, path):
                self._known.setdefault(name, path)

    def where(self, name: str) -> str | tuple[str, ...] | None:
        """The URL of a clip, or those of its frames; None if there is none of this name."""
        path = self._known.get(name.strip().removeprefix("./")) or self._known.get(posixpath.basename(name.strip()))
        if path is not None and path in self.folders:
            return tuple(files.join(self.directory, p) for p in self.folders[path])
        return None if path is None else files.join(self.directory, path)


def entries(url: str, clips: Clips, problems: list[Problem]) -> Iterator[Entry]:
    """An entry for each clip that a file describes. ``fields`` are empty; ``extra`` has ``events`` ([{text, start, end}]),
    ``part`` and ``turns`` where the file has them. Clips that are not there are added to ``problems``.
    """
    if not url.lower().endswith(".json"):
        yield from _webvid(url, clips, problems) if _is_webvid(url) else _table(url, clips, problems)
        return
    try:
        content = json.loads(files.read_text(url))
    except ValueError as error:
        raise DiptychError(f"{url}: broken JSON: {error}") from error
    found = _form(content)
    if found == "rows":
        yield from _table(url, clips, problems)
    elif found == "":
        keys = ", ".join(list(content)[:8]) if isinstance(content, dict) else type(content).__name__
        raise DiptychError(
            f"{url}: not a list of clips: expected COCO's videos and annotations, MSR-VTT's videos and sentences, ActivityNet's "
            f"timestamps and sentences, conversations with 'video', or rows; found {keys}"
        )
    else:
        yield from _READERS[found](content, files.name(url), clips, problems)


def _form(content: Any) -> str:
    """Which layout a JSON has."""
    if isinstance(content, list):
        first = content[0] if content else None
        if not isinstance(first, dict):
            return ""
        return "conversations" if "conversations" in first or "messages" in first else "rows"
    if not isinstance(content, dict):
        return ""
    if isinstance(content.get("sentences"), list) and isinstance(content.get("videos"), list):
        return "msrvtt"
    if isinstance(content.get("annotations"), list) and isinstance(content.get("videos", content.get("images")), list):
        return "coco"
    values = list(content.values())[:20]
    return "activitynet" if values and all(isinstance(v, dict) and "timestamps" in v for v in values) else ""


def _located(name: str, item: str, clips: Clips, problems: list[Problem]) -> Any:
    where = clips.where(name)
    if where is None:
        problems.append(Problem(item, f"there is no clip '{name}' in {clips.directory}"))
    return where


def _table(url: str, clips: Clips, problems: list[Problem]) -> Iterator[Entry]:
    for entry in table_entries(url, problems, paths=COLUMNS):
        where = clips.where(entry.id)
        if where is not None:
            entry.where = where
        yield entry


def _is_webvid(url: str) -> bool:
    columns, _ = read_csv(url, []) if url.lower().endswith((".csv", ".tsv")) else ([], [])
    return set(WEBVID) <= set(columns)


def _webvid(url: str, clips: Clips, problems: list[Problem]) -> Iterator[Entry]:
    for line, row in read_csv(url, problems)[1]:
        name, caption = str(row.pop("videoid", "")).strip(), row.pop("name", None)
        folder = str(row.get("page_dir") or "").strip()
        item = f"{files.name(url)}:{line}"
        where = clips.where(f"{folder}/{name}") if folder else clips.where(name)
        if where is None:
            where = _located(name, item, clips, problems)
        if where is not None:
            yield Entry(name, where, texts(caption), {k: v for k, v in row.items() if k != "contentUrl"})


def _coco(content: dict[str, Any], file: str, clips: Clips, problems: list[Problem]) -> Iterator[Entry]:
    names: dict[Any, str] = {}
    made: dict[Any, Entry] = {}
    listed: list[Any] = content["videos"] if "videos" in content else content["images"]
    for number, video in enumerate(listed):
        name = video.get("file_name") or video.get("name") or video.get("id") if isinstance(video, dict) else None
        if name is None or "id" not in video:
            problems.append(Problem(f"{file}: video {number}", "expected {id, file_name}"))
            continue
        names[video["id"]] = str(name)
        where = _located(str(name), str(name), clips, problems)
        if where is not None:
            made[video["id"]] = Entry(str(name), where, [])
    for number, row in enumerate(content["annotations"]):
        key = row.get("video_id", row.get("image_id")) if isinstance(row, dict) else None
        if key not in names:
            problems.append(Problem(f"{file}: annotation {number}", f"there is no video {key}"))
        elif key in made and isinstance(row.get("caption"), str):
            made[key].captions.append(row["caption"])
    yield from made.values()


def _msrvtt(content: dict[str, Any], file: str, clips: Clips, problems: list[Problem]) -> Iterator[Entry]:
    told: dict[str, list[str]] = {}
    for number, row in enumerate(content["sentences"]):
        if isinstance(row, dict) and isinstance(row.get("caption"), str):
            told.setdefault(str(row.get("video_id")), []).append(row["caption"])
        else:
            problems.append(Problem(f"{file}: sentence {number}", "expected {video_id, caption}"))
    for number, video in enumerate(content["videos"]):
        name = str(video.get("video_id", "")) if isinstance(video, dict) else ""
        if not name:
            problems.append(Problem(f"{file}: video {number}", "expected {video_id}"))
            continue
        where = _located(name, name, clips, problems)
        if where is not None:
            known = {"part": PARTS.get(str(video.get("split")), str(video["split"]))} if "split" in video else {}
            yield Entry(
                name, where, told.get(name, []), {**known, **({"category": video["category"]} if "category" in video else {})}
            )


def _activitynet(content: dict[str, Any], file: str, clips: Clips, problems: list[Problem]) -> Iterator[Entry]:
    for name, row in content.items():
        where = _located(name, name, clips, problems)
        if where is None:
            continue
        try:
            spans, sentences = row["timestamps"], row["sentences"]
            events: list[dict[str, Any]] = [
                {"text": str(text).strip(), "start": float(start), "end": float(end)}
                for (start, end), text in zip(spans, sentences, strict=True)
            ]
        except (KeyError, TypeError, ValueError):
            problems.append(Problem(name, "expected as many timestamps [start, end] as sentences"))
            continue
        for event in events:
            if event["end"] <= event["start"]:
                problems.append(Problem(name, f"an interval that ends before it starts: {event['start']} to {event['end']} s"))
        events = sorted((e for e in events if e["end"] > e["start"]), key=lambda e: e["start"])
        yield Entry(name, where, [" ".join(str(e["text"]) for e in events)], {"events": events})


def _conversations(content: list[Any], file: str, clips: Clips, problems: list[Problem]) -> Iterator[Entry]:
    names = Names()
    for number, row in enumerate(content):
        item = names.new(str(row.get("id") or row.get("video") or f"{file}:{number}"))
        if not isinstance(row.get("video"), str):
            problems.append(Problem(item, "a conversation without 'video'"))
            continue
        where = _located(row["video"], item, clips, problems)
        if where is None:
            continue
        try:
            turns = [list(turn) for turn in turns_of(row.get("conversations", row.get("messages")))]
        except ValueError as mistake:
            problems.append(Problem(item, str(mistake)))
            continue
        answer = next((text for role, text in turns if role == "assistant"), "")
        others = {k: v for k, v in row.items() if k not in ("id", "video", "conversations", "messages")}
        yield Entry(item, where, [answer], {**others, "turns": turns})


_READERS: dict[str, Callable[[Any, str, Clips, list[Problem]], Iterator[Entry]]] = {
    "coco": _coco,
    "msrvtt": _msrvtt,
    "activitynet": _activitynet,
    "conversations": _conversations,
}
