"""A second copy of a run's checkpoints, at any fsspec URL: for machines that may disappear together with their disks."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

from diptych.core.errors import DiptychError
from diptych.core.files import write_atomically

LAST = "state.json"  # a checkpoint is complete once this file exists: it is written last, for stores without rename


class Mirror:
    """The second copy of a run's checkpoints."""

    def __init__(self, url: str, keep: int):
        import fsspec

        try:
            self.files, self.root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise DiptychError(f"checkpoints.mirror: cannot open '{url}': {error}") from error
        self.url, self.keep = url, keep

    def push(self, path: Path, best: Path | None) -> None:
        """Copy a checkpoint there and leave as many as are kept here. A failure is reported and does not stop the run, since the
        local copy is complete.
        """
        there = f"{self.root}/{path.name}"
        try:
            self.files.makedirs(there, exist_ok=True)
            for file in sorted(path.iterdir(), key=lambda f: f.name == LAST):
                self.files.put_file(str(file), f"{there}/{file.name}")
            for old in self.steps()[: -self.keep]:
                if best is None or old != best.name:
                    self.files.rm(f"{self.root}/{old}", recursive=True)
        except Exception as error:  # each store raises its own errors
            print(f"note: checkpoints.mirror: {self.url} did not take {path.name}: {error}", file=sys.stderr)

    def steps(self) -> list[str]:
        """Names of the complete checkpoints there, oldest first."""
        if not self.files.isdir(self.root):
            return []
        names = [str(f).rstrip("/").rpartition("/")[2] for f in self.files.ls(self.root, detail=False)]
        return sorted(n for n in names if re.fullmatch(r"step-\d+", n) and self.files.exists(f"{self.root}/{n}/{LAST}"))

    def pull(self, into: Path) -> Path | None:
        """Bring the newest checkpoint into the directory ``into``, if there is any."""
        steps = self.steps()
        if not steps:
            return None

        def fetch(to: Path) -> Any:
            """Downloads the files of the last checkpoint."""
            to.mkdir(parents=True)
            for file in self.files.ls(f"{self.root}/{steps[-1]}", detail=False):
                self.files.get_file(str(file), str(to / str(file).rpartition("/")[2]))

        target = into / steps[-1]
        try:
            write_atomically(target, fetch)
        except Exception as error:
            shutil.rmtree(target, ignore_errors=True)
            raise DiptychError(f"checkpoints.mirror: cannot fetch {steps[-1]} from {self.url}: {error}") from error
        return target
