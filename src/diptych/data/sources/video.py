"""``video:``: clips with captions: video files, animated pictures, folders of frames, and files that describe such clips."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from diptych.core.errors import DiptychError
from diptych.core.extras import need
from diptych.core.sample import IMAGE, Conversation, Sample, Turn
from diptych.core.sample import Video as Clip
from diptych.data.image import SUFFIXES
from diptych.data.source import BrokenItem, Problem
from diptych.data.sources.base import PARTS, Entry, ListedSource
from diptych.data.sources.folder import TABLES, by_file_or_in_table, lone_texts
from diptych.data.storage import digests, files
from diptych.data.video import WITH_PILLOW, WITH_PYAV, decode_animation, decode_frames, decode_video, torchcodec_problem
from diptych.data.videos import layouts, subtitles
from diptych.data.videos.sampling import How, Sampling

CLIPS = (*WITH_PYAV, *WITH_PILLOW)
FRAMES = tuple(suffix for suffix in SUFFIXES if suffix not in WITH_PILLOW)  # a folder of numbered GIFs holds clips
WHOLE = 64_000_000  # bytes; larger files are hashed in pieces
_NUMBER = re.compile(r"(\d+)\D*$")


class Video(ListedSource):
    """All clips below a directory, or those that a glob names: files (.mp4, .webm, .mkv, .avi, .mov, .m4v, .gif, .webp), and
    folders of numbered pictures; or those that a .json, .csv, .tsv or .jsonl describes (``videos.layouts``).

    Captions of a directory as for ``folder:``: next to ``a.mp4`` or the folder ``a/``, ``a.txt`` or ``a.json``; or a table at the
    top (``captions.jsonl``, ``metadata.csv`` …) with the columns ``video`` or ``file_name``, and a caption. speech: ``extra``:
    subtitles next to a clip (``a.srt``, ``a.vtt``) are in ``extra["speech"]``, [{text, start, end}] in seconds; ``caption``: they
    are also the caption of clips that have none.

    frames: at most this many are decoded. sampling, rate: which ones (``videos.sampling``). size: the shorter side of larger
    frames, in pixels. fps: of folders of frames. videos: the directory of the clips that a file describes; else its own. by:
    ``event``: one sample for each interval with a text of its own (ActivityNet's), instead of one for each clip. decoder:
    ``torchcodec``, where it and FFmpeg's libraries are installed.
    """

    looked_for = (
        f"clips ({' '.join(CLIPS)}, or folders of numbered pictures) with a caption in a .txt or .json of the same name, "
        f"or in {TABLES[0]}"
    )
    medium = "video"

    def __init__(
        self,
        place: str,
        *,
        frames: Annotated[int, Field(ge=1, le=1024)] = 32,
        size: Annotated[int, Field(ge=16, le=4096)] = 448,
        fps: Annotated[float, Field(gt=0)] = 25.0,
        sampling: How = "segments",
        rate: Annotated[float, Field(gt=0)] = 1.0,
        videos: str | None = None,
        by: Literal["clip", "event"] = "clip",
        speech: Literal["none", "extra", "caption"] = "none",
        decoder: Literal["pyav", "torchcodec"] = "pyav",
    ):
        self.sampling, self.size, self.fps = Sampling(frames, sampling, rate), size, fps
        self.videos, self.by, self.speech, self.decoder = videos, by, speech, decoder
        if decoder == "torchcodec" and (problem := torchcodec_problem()):
            raise DiptychError(f"video:{place}: {problem}")
        super().__init__(place)

    def entries(self) -> Iterator[Entry]:
        """Every clip, or every event, that the address names."""
        for entry in self._described() if self.place.lower().endswith(layouts.ENDINGS) else self._found():
            self._hear(entry)
            yield from _events_of(entry) if self.by == "event" else [entry]

    def _described(self) -> Iterator[Entry]:
        """The clips that a file describes."""
        directory = files.directory_of(self.place, self.videos)
        result = files.find(directory)
        clips, folders = [path for path in result if path.lower().endswith(CLIPS)], frame_folders(result)
        self._need_av(clips)
        self._subtitles = _subtitles_of(directory, result)
        yield from layouts.entries(self.place, layouts.Clips(directory, clips, folders), self.problems)

    def _need_av(self, clips: Sequence[str]) -> None:
        if any(path.lower().endswith(WITH_PYAV) for path in clips):
            need("av", extra="video", what=f"video:{self.place}")

    def _hear(self, entry: Entry) -> None:
        """Add the subtitles of a clip."""
        if self.speech == "none":
            return
        url = entry.where if isinstance(entry.where, str) else files.parent(entry.where[0])
        url = self._subtitles.get(posixpath.splitext(url)[0]) or self._subtitles.get(url) or ""
        if not url:
            return
        try:
            entry.extra["speech"] = subtitles.speech(files.read_text(url))
        except (ValueError, DiptychError) as error:
            self.problems.append(Problem(entry.id, f"{files.name(url)}: {error}"))
            return
        if self.speech == "caption" and not entry.captions:
            entry.captions = [" ".join(cue["text"] for cue in entry.extra["speech"])]

    def _found(self) -> Iterator[Entry]:
        """The clips of a directory or a glob."""
        if files.is_directory(self.place):
            directory, result = self.place, files.find(self.place)
            clips = [path for path in result if path.lower().endswith(CLIPS)]
            folders = frame_folders(result)
        else:
            directory, result, clips, folders = self._matched()
        self.problems += lone_texts([*clips, *folders], result, "clip")
        self._need_av(clips)
        self._subtitles = _subtitles_of(directory, result)
        for entry in by_file_or_in_table(directory, [*clips, *folders], result, self.problems, layouts.COLUMNS):
            pictures = folders.get(entry.id.rstrip("/"))
            if pictures:
                entry.where = tuple(files.join(directory, path) for path in pictures)
            yield entry

    def _matched(self) -> tuple[str, list[str], list[str], dict[str, list[str]]]:
        """For a glob: the directory that all matches share, files there, clips, and folders of frames."""
        urls = files.expand(self.place)
        matches = [url for url in urls if url.lower().endswith(CLIPS) or files.is_directory(url)]
        if not matches:
            raise DiptychError(f"video:{self.place}: no clip or directory has such a name")
        names = files.relative(matches)
        directory = matches[0][: -len(names[0])].rstrip("/") or "."
        result: list[str] = []
        folders: dict[str, list[str]] = {}
        for url, name in zip(matches, names, strict=True):
            if files.is_directory(url):
                below = frame_folders([f"{name}/{path}" for path in files.find(url)])
                folders |= {folder: pictures for folder, pictures in below.items() if folder == name}
            else:
                result.append(name)
        stems = [*folders, *(posixpath.splitext(name)[0] for name in result)]
        text_files = [stem + end for stem in stems for end in (".txt", ".json") if files.exists(files.join(directory, stem + end))]
        return directory, [*result, *text_files], result, folders

    def files_of(self, entry: Entry) -> Sequence[str]:
        """URLs of the files that an entry needs; none if it lies within a larger file."""
        return [entry.where] if isinstance(entry.where, str) else list(entry.where)

    def read(self, entry: Entry) -> bytes:
        """The bytes that decide the split: the file, the pictures one after the other, or a hash of pieces of a large file."""
        if not isinstance(entry.where, str):
            return b"".join(digests.digest(files.read(url)) for url in entry.where)
        with files.open_file(entry.where) as file:
            data: bytes = file.read(WHOLE)
            if len(data) < WHOLE:
                return data
            pieces = [digests.digest(data)]
            while piece := file.read(WHOLE):
                pieces.append(digests.digest(piece))
        return b"".join(pieces)

    def encoded(self, index: int) -> bytes | None:
        """The image as it is stored; None if a sample of this source is not one image."""
        return None

    def _fields(self) -> tuple[str, ...]:
        """Names of the fields that samples have, each at least one of them."""
        return (*super()._fields(), *(("turns",) if any("turns" in entry.extra for entry in self._entries) else ()))

    def sample_of(self, index: int, encoded: bytes | None) -> Sample:
        """The sample, given what ``encoded(index)`` returned."""
        entry = self._entries[index]
        clip = self._clip(entry)
        if "turns" not in entry.extra:
            return self.sample(entry, video=clip)
        turns = shown_in([Turn(*turn) for turn in entry.extra["turns"]], len(clip.frames))
        sample = self.sample(entry, video=clip, turns=Conversation(turns, clip.frames))
        del sample.extra["turns"]
        return sample

    def _clip(self, entry: Entry) -> Clip:
        where, name, how = entry.where, entry.id, self.sampling
        if self.by == "event":
            start, end = float(entry.extra["start"]), float(entry.extra["end"])
            how = replace(how, within=(start, end))
        try:
            if not isinstance(where, str):
                names = [files.name(url) for url in where]
                return decode_frames(lambda i: files.read(where[i]), names, name, how, self.size, self.fps)
            if where.lower().endswith(WITH_PILLOW):
                return decode_animation(files.read(where), name, how, self.size)
            return decode_video(
                lambda: where if files.is_local(where) else files.open_file(where), name, how, self.size, self.decoder
            )
        except (OSError, DiptychError) as error:
            if isinstance(error.__cause__, ImportError):
                raise
            raise BrokenItem(name, f"cannot be read: {error}") from error

    def split(self, name: str) -> ListedSource:
        """The part that a file itself names (MSR-VTT's); else the part by hash."""
        known = {entry.extra.get("part") for entry in self._entries}
        own = self.place.lower().endswith(".json") and known & set(PARTS)
        if name not in PARTS or not own or self.part is not None:
            return super().split(name)
        chosen = [i for i, entry in enumerate(self._entries) if entry.extra.get("part") == name]
        if not chosen:
            raise DiptychError(f"{self.address}: the file has no '{name}' part; it has {', '.join(sorted(map(str, known)))}")
        return self._part_of(name, chosen)


def shown_in(turns: list[Turn], frames: int) -> list[Turn]:
    """Turns in which the mark ``<video>`` (or ``<image>``, as LLaVA's files of clips have it) is one mark for each frame; without a
    mark, the frames come first.
    """
    marks = IMAGE * frames
    for number, turn in enumerate(turns):
        for mark in (layouts.MARK, IMAGE):
            if mark in turn.text:
                text = turn.text.replace(mark, marks, 1).replace(layouts.MARK, "")
                return [*turns[:number], turn._replace(text=text), *turns[number + 1 :]]
    first = next((i for i, turn in enumerate(turns) if turn.role == "user"), 0)
    return [*turns[:first], turns[first]._replace(text=f"{marks}\n{turns[first].text}"), *turns[first + 1 :]]


def _events_of(entry: Entry) -> Iterator[Entry]:
    """An entry for each event of a clip, with its text as caption."""
    others: dict[str, Any] = {k: v for k, v in entry.extra.items() if k not in ("events", "turns")}
    for number, event in enumerate(entry.extra.get("events") or ()):
        known = {**others, "start": event["start"], "end": event["end"]}
        yield Entry(f"{entry.id}#{number}", entry.where, [event["text"]], known)


def _subtitles_of(directory: str, found: Sequence[str]) -> dict[str, str]:
    """The files of subtitles in a directory, by their URL without ending, and without the language in it (``a.en.srt``)."""
    result: dict[str, str] = {}
    for path in found:
        stem, suffix = posixpath.splitext(path)
        if suffix.lower() in subtitles.SUFFIXES:
            for name in (stem, re.sub(r"\.[a-z]{2,3}(-[A-Za-z]+)?$", "", stem)):
                result.setdefault(files.join(directory, name), files.join(directory, path))
    return result


def frame_folders(paths: Sequence[str]) -> dict[str, list[str]]:
    """Folders that hold only pictures, two or more, each with a number at the end of its name: the pictures in the order of these
    numbers.
    """
    held: dict[str, list[str]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        if folder and name.lower() != "thumbs.db":
            held.setdefault(folder, []).append(path)
    result = {}
    for folder, inside in held.items():
        numbers = [_NUMBER.search(posixpath.splitext(path.rpartition("/")[2])[0]) for path in inside]
        if len(inside) > 1 and all(numbers) and all(path.lower().endswith(FRAMES) for path in inside):
            order = sorted(zip([int(n[1]) for n in numbers if n], inside, strict=True))
            result[folder] = [path for _, path in order]
    return result
