"""Reads the files that training and evaluation write into a run's directory (docs/runs.md).

A missing file counts as empty; an unreadable one raises DiptychError, which names it. Needs no torch and no models.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.config.recipe import Recipe, load_recipe
from diptych.core.errors import DiptychError
from diptych.core.files import read_json_or, read_jsonl

if TYPE_CHECKING:
    import numpy as np

Record = dict[str, Any]  # of one item


@dataclass(frozen=True)
class RunFiles:
    """The files of one run. ``path``: its directory."""

    path: Path

    @property
    def recipe_file(self) -> Path:
        """The path of the resolved recipe."""
        return self.path / "recipe.yaml"

    def exists(self) -> bool:
        """Whether the directory holds a run."""
        return self.recipe_file.is_file()

    def recipe(self) -> Recipe:
        """The recipe as it was trained, with every default and override. Raises DiptychError if there is none."""
        return load_recipe(str(self.recipe_file))

    def requested(self) -> Recipe | None:
        """The recipe that a comparison or a study asked for, before training."""
        path = self.path / "job.yaml"
        return load_recipe(str(path)) if path.is_file() else None

    def spent(self) -> dict[str, Any]:
        """Seconds, samples, FLOPs, parameters … of the training."""
        return read_json_or(self.path / "spent.json", {})

    def finished(self) -> bool:
        """Whether training used up its budget."""
        return bool(self.spent().get("finished"))

    def environment(self) -> dict[str, Any]:
        """Versions, device, command, data and its fingerprint."""
        return read_json_or(self.path / "environment.json", {})

    def model(self) -> dict[str, Any]:
        """The image size and the licences of pretrained parts."""
        return read_json_or(self.path / "model.json", {})

    def metrics(self) -> list[dict[str, Any]]:
        """The logged training steps, in order."""
        return read_jsonl(self.path / "metrics.jsonl")

    def log(self) -> Path | None:
        """What a run of a comparison or a study printed."""
        path = self.path / "log.txt"
        return path if path.is_file() else None

    def evaluation(self, folder: str = "evaluation") -> EvaluationFiles:
        """The files of its evaluation."""
        return EvaluationFiles(self.path / folder)


@dataclass(frozen=True)
class EvaluationFiles:
    """The files of one evaluation, of a run of ours or of any other model. ``path``: its folder."""

    path: Path

    def exists(self) -> bool:
        """Whether the folder holds a summary or records."""
        return (self.path / "summary.json").is_file() or bool(self.record_files())

    def summary(self) -> dict[str, Any]:
        """``{"model", "data", "data_fingerprint", "results", "skipped" …}``."""
        return read_json_or(self.path / "summary.json", {})

    def results(self) -> list[dict[str, Any]]:
        """One entry for each metric of each task."""
        return [row for row in self.summary().get("results") or [] if isinstance(row, dict)]

    def skipped(self) -> dict[str, str]:
        """``{task: why it was not done}``."""
        return {str(row.get("task")): str(row.get("reason")) for row in self.summary().get("skipped") or []}

    def tasks(self) -> set[str]:
        """Names of the tasks that were done or skipped."""
        return {str(row.get("task")) for row in self.results()} | set(self.skipped())

    def key(self) -> str | None:
        """The hash of the weights that were evaluated."""
        return self._state().get("key")

    def settings(self, task: str) -> dict[str, Any]:
        """The class and the options of a task when its records were made."""
        return dict(self._state().get("tasks", {}).get(task, {}).get("settings", {}))

    def _state(self) -> dict[str, Any]:
        return read_json_or(self.path / "state.json", {})

    def record_files(self) -> dict[str, Path]:
        """``{task: the file of its records}``, by name."""
        return {path.stem: path for path in sorted((self.path / "records").glob("*.jsonl"))}

    def records(self, task: str) -> list[Record]:
        """The records of a task, one for each item. Raises DiptychError for one that is broken, has no item, or occurs twice."""
        path = self.path / "records" / f"{task}.jsonl"
        records = read_jsonl(path)
        seen: set[str] = set()
        for number, record in enumerate(records, 1):
            if not isinstance(record, dict) or "item" not in record:
                raise DiptychError(f'{path}, record {number}: expected an object with "item"')
            name = str(record["item"])
            if name in seen:
                raise DiptychError(f"{path}, record {number}: item '{name}' occurs twice")
            seen.add(name)
        return records

    def captions(self) -> list[dict[str, Any]]:
        """``{"item", "generated", "references"}`` of each captioned picture."""
        return read_jsonl(self.path / "captions.jsonl")

    def embeddings(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Image and text embeddings, float32 [N, E] each, row i of both from the same item; None if the model has none."""
        from zipfile import BadZipFile

        import numpy as np

        path = self.path / "embeddings.npz"
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as stored:
                return stored["image"], stored["text"]
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise DiptychError(f"{path} could not be read ({error})") from None


def run_directories(path: Path) -> dict[str, list[tuple[int, RunFiles]]]:
    """The runs of a comparison or a study, ``<name>-s<seed>``: ``{name: [(seed, run)]}`` by name and seed."""
    runs: dict[str, list[tuple[int, RunFiles]]] = {}
    for child in sorted(path.iterdir()) if path.is_dir() else []:
        name, mark, seed = child.name.rpartition("-s")
        if child.is_dir() and mark and name and seed.isdecimal():
            runs.setdefault(name, []).append((int(seed), RunFiles(child)))
    return {name: sorted(seeds, key=lambda pair: pair[0]) for name, seeds in runs.items()}
