"""``diptych adapt`` for pictures with several labels: one model, one way, a folder that loads as a model."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from diptych.benchmarks.matching.zeroshot import TEMPLATES
from diptych.choose.adapt import PROBLEMS, check_folder_is_free
from diptych.choose.cells import unsuited
from diptych.choose.features import Progress, vectors_of
from diptych.choose.several.data import Tagged, few_of_each, tagged_parts
from diptych.choose.several.select import choose_several
from diptych.choose.several.support import labels_support
from diptych.choose.several.ways import several_way
from diptych.choose.support import class_texts, with_vectors
from diptych.core.capabilities import Model
from diptych.core.errors import DiptychError, counted
from diptych.core.files import write_jsonl
from diptych.inference.adapted import FILE as ADAPTED
from diptych.inference.mapped import FILE as MAPPED
from diptych.inference.several import LabelledModel


def adapt_to_labels(
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
) -> LabelledModel:
    """Learns a way on the training part of the data and writes the model to ``out``; returns it. The arguments are those of
    ``choose.adapt.adapt``; shots: pictures of each label. DiptychError for a way that does not fit.
    """
    check_folder_is_free(out, overwrite)
    way = several_way(way_name)
    began = time.perf_counter()
    parts = tagged_parts(data, progress)
    assert isinstance(parts.train, Tagged)
    model = with_vectors(model, parts.train.names, templates)
    vectors, broken = vectors_of(model, parts.train, progress)
    usable = np.array([i for i in range(len(parts.train)) if i not in broken], dtype=np.int64)
    train = parts.train.rows(usable)
    texts = class_texts(model, train.names, templates, descriptions)
    which = few_of_each(train.targets, shots or 0, seed)
    support = labels_support(vectors[usable][which], train.targets[which], train.names, texts, seed)
    if reason := unsuited(way, support):
        raise DiptychError(f"--way {way_name}: {reason}")
    choice = choose_several(way, support, parts.groups[usable][which], settings)
    head = way(**choice.settings).fit(support)
    digest = hashlib.blake2b(np.packbits(support.y).tobytes(), digest_size=6)
    digest.update("\n".join(train.digests[i] for i in which).encode())
    about: dict[str, Any] = {
        "id": f"{way_name}-{digest.hexdigest()}",
        "way": way_name,
        "settings": choice.settings,
        "data": data,
        "shots": shots,
        "seed": seed,
        "pictures": len(which),
        "per_label": {name: int(n) for name, n in zip(train.names, support.y.sum(0), strict=True)},
        "templates": list(templates),
        "precision": None if np.isnan(choice.score) else choice.score,
        "folds": choice.folds,
        "tried": choice.tried,
        "seconds": time.perf_counter() - began,
    }
    c = choice.calibration
    made = LabelledModel(out.name, model, head, train.names, c.slope, c.offsets, c.thresholds, about)
    made.save(out, address)
    for other in (ADAPTED, MAPPED):  # of a model that was replaced
        (out / other).unlink(missing_ok=True)
    write_jsonl(out / PROBLEMS, [asdict(p) for p in train.problems])
    return made


def summary_of_labels(about: Mapping[str, Any]) -> str:
    """One sentence about what was learned."""
    pictures = counted(about["pictures"], "picture")
    if about["precision"] is None:
        return f"learned from {pictures}; no precision is known, since none could be left out"
    learned = "on the training pictures, from which it learns thresholds alone"
    way = f"out of fold ({about['folds']} folds)" if about["folds"] else learned
    labels, precision = counted(len(about["per_label"]), "label"), f"{100 * about['precision']:.1f} %"
    return f"learned from {pictures} with {labels}; mean average precision {precision} {way}"
