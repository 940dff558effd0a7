"""The pictures of a task's items, for the examples.

They come from the files that a record names, from the comparison's ``items/``, or from the data, opened again and checked by its
fingerprint.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from diptych.benchmarks.pictures import Clip, load_image
from diptych.benchmarks.video.conditions import is_clip
from diptych.core.errors import DiptychError
from diptych.data.clips import clips_as_images
from diptych.data.source import BrokenItem
from diptych.report.drawing.films import Film, film, film_of
from diptych.report.drawing.marks import escape
from diptych.report.read import Comparison, Run
from diptych.report.sections.answers import Answers
from diptych.report.sections.examples import LARGEST, thumbnail
from diptych.training.run_files import EvaluationFiles, Record

MOST = 4  # pictures of one item


class Pictures:
    """Finds the pictures of items; missing ones are reported once, in ``notes``."""

    def __init__(self, comparison: Comparison, images: Path | None = None):
        self.comparison, self.images = comparison, images
        self.notes: list[str] = []
        self._items: dict[tuple[Path, str], dict[str, Any]] = {}

    def of(self, task: str, answers: Answers, record: Record) -> list[str]:
        """The ``src`` of each picture of an item, at most four; empty if there are none."""
        named = self._files(answers, record)
        if named:
            return named
        item = self.item(task, answers, str(record["item"]))
        shown = _shown(item) or _of_group(self.item(task, answers, str(record.get("cluster", ""))), record)
        if shown:
            return [src for one in shown[:MOST] if (src := _source_of(one, record.get("frames")))]
        kept = self.comparison.items
        entry = kept.get(str(record["item"])) or kept.get(str(record.get("cluster")))
        picture = thumbnail(entry.image) if entry else None
        return [picture[0]] if picture else []

    def _files(self, answers: Answers, record: Record) -> list[str]:
        names = record.get("images", record.get("image"))
        names = [names] if isinstance(names, str) else names if isinstance(names, list) else []
        folders = [
            f
            for f in (self.images, answers.evaluation.path, answers.evaluation.path / "records", self.comparison.path, Path())
            if f is not None
        ]
        sources = []
        for name in (n for n in names[:MOST] if isinstance(n, str)):
            path = next((f / name for f in folders if (f / name).is_file()), None)
            if path is not None and (shown := thumbnail(path)):
                sources.append(shown[0])
        return sources

    def item(self, task: str, answers: Answers, name: str) -> Any:
        """The item of the task, from the data opened again; None if that is impossible."""
        key = (answers.evaluation.path, task)
        if key not in self._items:
            run = next(run for run in answers.recipe.runs if run.evaluation.path == answers.evaluation.path)
            shared = next(
                (k for k in self._items if k[1] == task and self._data_of(k[0]) == self._data_of(run.evaluation.path)), None
            )
            self._items[key] = self._items[shared] if shared else self._opened(task, run)
        return self._items[key].get(name)

    def _data_of(self, folder: Path) -> str:
        return next((run.data_fingerprint for r in self.comparison.recipes for run in r.runs if run.evaluation.path == folder), "")

    def forget(self) -> None:
        """Releases the items, since pictures are large."""
        self._items.clear()

    @cached_property
    def _sources(self) -> dict[str, Any]:
        return {}

    def _opened(self, task: str, run: Run) -> dict[str, Any]:
        try:
            built_in = _task_of(task, run.evaluation)
            if built_in is None:
                return {}
            return _named(built_in.items(self._source(run)))
        except Exception as error:  # any problem with another version or a lost file costs only the pictures
            self.notes.append(f"{task}: no pictures from the data ({error or type(error).__name__}).")
            return {}

    def _source(self, run: Run) -> Any:
        from diptych.data.sources import open_source

        if not run.data:
            return None
        if run.data not in self._sources:
            if not is_ours(run.data):
                raise DiptychError(f"'{run.data}' is not opened for a report: it is remote, or its code is not built in")
            source = open_source(run.data)
            if source.fingerprint() != run.data_fingerprint:
                raise DiptychError(f"'{run.data}' now holds other data")
            fields = getattr(source, "fields", ())
            self._sources[run.data] = clips_as_images(source) if "video" in fields and "image" not in fields else source
        return self._sources[run.data]


def is_ours(address: str) -> bool:
    """Whether data has a built-in format and is local: a report of foreign files must not run code or call a server."""
    from diptych.data.sources import SCHEMES

    if "://" in address:
        return False
    scheme, mark, rest = address.partition(":")
    if mark and scheme in ("repeated", "control"):  # made of what is at another address
        return is_ours(unquote(rest.partition("?")[0]))
    return not mark or scheme == "scenes" or scheme in SCHEMES


def _task_of(task: str, evaluation: EvaluationFiles) -> Any:
    """The built-in task with the settings of its records; None for other tasks."""
    from pydantic import TypeAdapter

    from diptych.core.registry import resolve

    settings = evaluation.settings(task)
    kind = str(settings.pop("class", ""))
    if not kind.startswith("diptych."):
        return None
    return TypeAdapter(resolve(kind, {}, "task")).validate_python(settings)


def changed_settings(task: str, evaluation: EvaluationFiles) -> dict[str, Any]:
    """The settings of a built-in task that differ from the defaults, except files."""
    try:
        built_in = _task_of(task, evaluation)
    except Exception:  # settings of another version
        return {}
    if built_in is None:
        return {}
    defaults = vars(type(built_in)())
    return {
        k: v
        for k, v in vars(built_in).items()
        if k not in ("name", "needs", "batch") and isinstance(v, (int, float, str)) and v != defaults[k] and "/" not in str(v)
    }


def _named(items: Iterable[Any]) -> dict[str, Any]:
    """Items by name; those without one by their position, as in the records of such tasks."""
    named = {}
    for i, item in enumerate(items):
        name = next(
            (n for part in _parts(item) if isinstance(n := _field(part, "id", "item"), (str, int))), None
        )  # arrays have methods of these names
        named[str(name) if name is not None else f"concept-{i:05d}"] = item
    return named


def _field(item: Any, *names: str) -> Any:
    for name in names:
        value = item.get(name) if isinstance(item, dict) else getattr(item, name, None)
        if value is not None and not (
            isinstance(value, (list, tuple)) and not value
        ):  # a sample with one image has no list of images
            return value
    return None


def _of_group(item: Any, record: Record) -> list[Any]:
    """The pictures of an item; of a contrast set only the record's picture."""
    shown, groups = _shown(item), next((g for part in _parts(item) if (g := _field(part, "groups")) is not None), ())
    return [shown[groups.index(record["group"])]] if record.get("group") in groups and len(groups) == len(shown) else shown


def _parts(item: Any) -> tuple[Any, ...]:
    return item if isinstance(item, tuple) else (item,)


def _shown(item: Any) -> list[Any]:
    """The pictures of an item: pixels, paths or contents of files."""
    shown = _field(item, "images", "image", "sample")
    if shown is None and isinstance(item, tuple):
        shown = next(
            (part for part in item if _is_picture(part) or is_clip(part) or hasattr(part, "image") or hasattr(part, "images")), None
        )
    if _can_be_shown(shown):
        return [shown]
    if isinstance(shown, (list, tuple)):
        return [part for part in shown if _can_be_shown(part)]
    return _shown(shown) if hasattr(shown, "image") or hasattr(shown, "images") else []


def _can_be_shown(value: Any) -> bool:
    return isinstance(value, (str, bytes, Clip)) or _is_picture(value) or is_clip(value)


def _source_of(shown: Any, weights: Any = None) -> str:
    """The ``src`` of a picture or a clip. weights: how much a model attended to each frame of the clip, if that is known."""
    from diptych.data.image import decode

    if isinstance(shown, Clip):
        try:
            shown = load_image(shown, "clip")
        except (BrokenItem, DiptychError):
            return ""
    if is_clip(shown):
        return film_of(shown, weights if isinstance(weights, list) else None)
    if isinstance(shown, str):
        picture = thumbnail(Path(shown))
        return picture[0] if picture else ""
    return of_array(decode(shown, "picture") if isinstance(shown, bytes) else shown)


def _is_picture(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == 3 and value.shape[2] == 3 and value.dtype == np.uint8


def of_array(image: np.ndarray) -> str:
    """A data URI of a picture: small drawings as PNG, larger pictures as a small JPEG."""
    from PIL import Image

    picture, out = Image.fromarray(image), io.BytesIO()
    if max(picture.size) <= 96:
        picture.save(out, "PNG", optimize=True)
        kind = "png"
    else:
        picture.thumbnail((LARGEST, LARGEST))
        picture.save(out, "JPEG", quality=80, optimize=True)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"


def img(src: str, alt: str) -> str:
    """An ``img`` element, or that of a clip (``films``). alt: a description for screen readers."""
    if isinstance(src, Film):
        return film(src, re.sub("\n", " ", alt))
    small = ' class="sprite"' if src.startswith("data:image/png") else ""
    return f'<img src="{src}" alt="{escape(re.sub(chr(10), " ", alt))}" loading="lazy"{small}>'
