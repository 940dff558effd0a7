"""``diptych adapt`` for ways that work on vectors: one model, one way, a folder that loads as a model."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError
from safetensors.numpy import save_file

from diptych.benchmarks.matching.zeroshot import TEMPLATES
from diptych.choose.data import Parts, Pictures, joined, open_parts, separated
from diptych.choose.features import Progress, vectors_of, without_broken
from diptych.choose.select import choose_settings, learned
from diptych.choose.support import class_texts, support_of, with_vectors
from diptych.choose.ways import Choice, Support, Way, way_named
from diptych.core.capabilities import Model
from diptych.core.errors import DiptychError, counted, nearest
from diptych.core.files import write_atomically, write_json, write_jsonl
from diptych.data.subsets.shots import few
from diptych.inference.adapted import FILE, AdaptedModel
from diptych.inference.mapped import FILE as MAPPED
from diptych.inference.several.model import FILE as LABELLED
from diptych.training.run_files import RunFiles

CALIBRATION = "calibration.safetensors"
PROBLEMS = "problems.jsonl"


def parts_of(address: str, progress: Progress | None = None, test_address: str | None = None) -> Parts:
    """The training and the test part at an address, without broken pictures and without test pictures that repeat training ones."""
    train, test = open_parts(address, test_address)
    train, test, prints = without_broken(train, test, joined([train, test]), address, progress, test_address)
    return separated(train, test, prints, address)


def check_folder_is_free(out: Path, overwrite: bool) -> None:
    """DiptychError if a folder holds an adapted model, unless ``overwrite``, or a run, which is never replaced."""
    if RunFiles(out).exists():
        raise DiptychError(f"{out} holds a run; choose another --out")
    if not overwrite and any((out / file).exists() for file in (FILE, MAPPED, LABELLED)):
        raise DiptychError(f"{out} holds an adapted model already; choose another --out, or --overwrite")


def fixed(way: type[Way], support: Support, groups: np.ndarray, settings: Mapping[str, Any]) -> Choice:
    """The choice where the user gave the settings: cross-validated all the same, for the probabilities."""

    class Given(way):  # type: ignore[valid-type, misc]
        """The way with these settings alone."""

        @classmethod
        def grid(cls, support: Support) -> Sequence[Mapping[str, Any]]:
            """One setting."""
            return [dict(settings)]

    return choose_settings(Given, support, groups)


def adapt(
    address: str,
    model: Model,
    way_name: str,
    data: str,
    out: Path,
    *,
    shots: int | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    templates: Sequence[str] = TEMPLATES,
    descriptions: Mapping[str, Sequence[str]] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> AdaptedModel:
    """Learns a way on the training part of the data and writes the model to ``out``; returns it.

    Near-duplicates are never on both sides of a fold. The test part is not used, except that its near-duplicates are known.
    DiptychError if the folder holds another model, unless ``overwrite``; OSError if it cannot be written.
    """
    check_folder_is_free(out, overwrite)
    way = way_named(way_name)
    began = time.perf_counter()
    parts = parts_of(data, progress)
    model = with_vectors(model, parts.train.names, templates)
    vectors, broken = vectors_of(model, parts.train, progress)
    usable = np.array([i for i in range(len(parts.train)) if i not in broken])
    train, vectors = parts.train.rows(usable), vectors[usable]
    which = few(train.labels, shots or 0, seed)
    support = support_of(vectors, train.labels, which, train.names, class_texts(model, train.names, templates, descriptions), seed)
    groups = parts.groups[usable][which]
    if settings:
        choice = fixed(way, support, groups, checked_settings(way, settings))
    else:
        choice = choose_settings(way, support, groups)
    head = learned(way, support, choice)
    about: dict[str, Any] = {
        "id": f"{way_name}-{train_id(train, which)}",
        "way": way_name,
        "settings": choice.settings,
        "data": data,
        "shots": shots,
        "seed": seed,
        "pictures": len(which),
        "per_class": {name: int((train.labels[which] == i).sum()) for i, name in enumerate(train.names)},
        "templates": list(templates),
        "accuracy": None if np.isnan(choice.accuracy) else choice.accuracy,
        "folds": choice.folds,
        "tried": choice.tried,
        "seconds": time.perf_counter() - began,
    }
    adapted = AdaptedModel(out.name, model, head, train.names, choice.temperature, about)
    adapted.save(out, address)
    for other in (MAPPED, LABELLED):  # of a model for captions or several labels that was replaced
        (out / other).unlink(missing_ok=True)
    known = ~np.isnan(choice.logits).any(1)
    held = {"logits": choice.logits[known].astype(np.float32), "labels": support.y[known].astype(np.int64)}
    write_atomically(out / CALIBRATION, lambda path: save_file(held, path))
    write_json(out / "pictures.json", {"ids": [train.ids[i] for i in which], "left_out": known.tolist()})
    write_jsonl(out / PROBLEMS, [asdict(p) for p in train.problems])
    return adapted


def checked_settings(way: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings checked against the fields of a way. DiptychError for an unknown one, or a value of another type."""
    known = {f.name for f in fields(way)}
    if unknown := [name for name in settings if name not in known]:
        raise DiptychError(f"--way {way.name}: unknown setting '{unknown[0]}'{nearest(unknown[0], known)}")
    try:
        made = TypeAdapter(way).validate_python(dict(settings))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise DiptychError(f"--way {way.name}: {where}: {problem['msg']}, got {problem['input']!r}") from None
    return {name: getattr(made, name) for name in settings}


def train_id(train: Pictures, which: np.ndarray) -> str:
    """A short hash of the pictures and classes that a head was learned from."""
    rows = sorted(f"{train.digests[i]} {train.names[train.labels[i]]}" for i in which)
    return hashlib.blake2b("\n".join(rows).encode(), digest_size=6).hexdigest()


def summary(about: Mapping[str, Any]) -> str:
    """One sentence about what was learned."""
    pictures = counted(about["pictures"], "picture")
    if about["accuracy"] is None:
        return f"learned from {pictures}; no accuracy, since with one picture a class none can be left out"
    way = f"out of fold ({about['folds']} folds)" if about["folds"] else "on the training pictures, from which it learns nothing"
    return f"learned from {pictures}; balanced accuracy {100 * about['accuracy']:.1f} % {way}"
