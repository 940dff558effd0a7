"""``video:``: clips with captions: video files, animated pictures, and folders of frames."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import Field

from diptych.core.errors import DiptychError
from diptych.core.extras import need
from diptych.core.sample import Sample
from diptych.data.image import SUFFIXES
from diptych.data.source import BrokenItem
from diptych.data.sources.base import IMAGE_COLUMNS, Entry, ListedSource
from diptych.data.sources.folder import TABLES, by_file_or_in_table, lone_texts
from diptych.data.storage import digests, files
from diptych.data.video import WITH_PILLOW, WITH_PYAV, decode_animation, decode_frames, decode_video

CLIPS = (*WITH_PYAV, *WITH_PILLOW)
FRAMES = tuple(suffix for suffix in SUFFIXES if suffix not in WITH_PILLOW)  # a folder of numbered GIFs holds clips
VIDEO_COLUMNS = ("video", "video_path", "clip", *IMAGE_COLUMNS)
WHOLE = 64_000_000  # bytes; larger files are hashed in pieces
_NUMBER = re.compile(r"(\d+)\D*$")


class Video(ListedSource):
    """All clips below a directory, or those that a glob names: files (.mp4, .webm, .mkv, .avi, .mov, .m4v, .gif, .webp), and
    folders of numbered pictures.

    Captions as for ``folder:``: next to ``a.mp4`` or the folder ``a/``, ``a.txt`` or ``a.json``; or a table at the top
    (``captions.jsonl``, ``metadata.csv`` …) with the columns ``video`` or ``file_name``, and a caption. frames: at most this many
    are decoded, evenly spread. size: the shorter side of larger frames, in pixels. fps: of folders of frames.
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
    ):
        self.frames, self.size, self.fps = frames, size, fps
        super().__init__(place)

    def entries(self) -> Iterator[Entry]:
        """Every image that the address names."""
        if files.is_directory(self.place):
            directory, result = self.place, files.find(self.place)
            clips = [path for path in result if path.lower().endswith(CLIPS)]
            folders = frame_folders(result)
        else:
            directory, result, clips, folders = self._matched()
        self.problems += lone_texts([*clips, *folders], result, "clip")
        if any(path.lower().endswith(WITH_PYAV) for path in clips):
            need("av", extra="video", what=f"video:{self.place}")
        for entry in by_file_or_in_table(directory, [*clips, *folders], result, self.problems, VIDEO_COLUMNS):
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

    def sample_of(self, index: int, encoded: bytes | None) -> Sample:
        """The sample, given what ``encoded(index)`` returned."""
        entry = self._entries[index]
        where, name, most = entry.where, entry.id, (self.frames, self.size)
        try:
            if not isinstance(where, str):
                names = [files.name(url) for url in where]
                clip = decode_frames(lambda i: files.read(where[i]), names, name, *most, self.fps)
            elif where.lower().endswith(WITH_PILLOW):
                clip = decode_animation(files.read(where), name, *most)
            else:
                clip = decode_video(lambda: where if files.is_local(where) else files.open_file(where), name, *most)
        except (OSError, DiptychError) as error:
            if isinstance(error.__cause__, ImportError):
                raise
            raise BrokenItem(name, f"cannot be read: {error}") from error
        return self.sample(entry, video=clip)


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
