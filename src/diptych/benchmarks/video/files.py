"""The clips that a benchmark's files name, below a directory, as their downloads are unpacked."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from diptych.core.errors import DiptychError
from diptych.data.sources.video import CLIPS, frame_folders
from diptych.data.storage import files


class ClipFiles:
    """Clips below a directory by their names: files, and folders of frames. Raises DiptychError if there is no such directory, or
    no clip in it.
    """

    def __init__(self, directory: str):
        if not files.is_local(directory) or not files.is_directory(directory):
            raise DiptychError(f"{directory}: no such folder on this machine; name that of the clips: &videos=DIRECTORY")
        self.directory = directory
        paths = files.find(directory)
        self._known: dict[str, list[str]] = {}
        for path in [*(p for p in paths if p.lower().endswith(CLIPS)), *frame_folders(paths)]:
            base = posixpath.basename(path)
            for name in dict.fromkeys((base, posixpath.splitext(base)[0])):
                self._known.setdefault(name, []).append(path)
        if not self._known:
            raise DiptychError(f"{directory}: no clips in it ({' '.join(CLIPS)}, or folders of numbered pictures)")

    def find(self, name: str, folders: Sequence[str] = ()) -> tuple[str, str]:
        """(path, "") of the clip of a name, with or without folders and ending; ("", reason) if there is none, or if there are
        several and none of ``folders`` decides: of these, the first one in which there is such a clip counts.
        """
        name = name.strip().removeprefix("./").rstrip("/")
        base = posixpath.basename(name)
        found = self._known.get(base) or self._known.get(posixpath.splitext(base)[0]) or []
        ends = [path for path in found if f"/{path}".endswith(f"/{name}") or posixpath.splitext(f"/{path}")[0].endswith(f"/{name}")]
        found = ends or found
        for folder in folders:
            inside = [path for path in found if f"/{folder.strip('/')}/" in f"/{path}"]
            if inside:
                found = inside
                break
        if not found:
            return "", f"there is no clip '{name}' in {self.directory}"
        if len(found) > 1:
            return "", f"several clips are called '{base}': {', '.join(found[:3])}"
        return files.join(self.directory, found[0]), ""
