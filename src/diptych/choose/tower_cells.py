"""Cells whose way trains a tower or its prompts: a run each, with its share of the time.

Nothing of a setting is chosen, but the winner is: so a fifth of the training pictures is held out, which stands in for
cross-validation, and the run learns from the others.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from diptych.choose.cells import Cell, measures
from diptych.choose.data import Pictures, groups_of, joined, labelled, near_pairs
from diptych.choose.features import Fingerprints, vectors_of
from diptych.choose.select import balanced_accuracy, log_loss
from diptych.choose.towers import TOWER_WAYS, fit
from diptych.choose.ways.linear import NEVER
from diptych.config.budget import Budget
from diptych.core.errors import DiptychError, Interrupted
from diptych.data.sources import open_source
from diptych.inference.adapted import AdaptedModel
from diptych.inference.load import load
from diptych.training.run_files import RunFiles

HOLD = 0.2  # of the training pictures
LEAST = 20.0  # seconds: a share of the time below this trains nothing worth a row
CHUNK = 64


def is_tower(way: str) -> bool:
    """Whether a way trains a tower, and learns classes."""
    return way in TOWER_WAYS and TOWER_WAYS[way].learns == "classes"


def trained(cell: Cell, data: str, run: Path, seconds: float | None) -> dict[str, Any]:
    """The record of a cell, with its run trained: ``accuracy`` is that on the pictures held out. ``skipped``: the reason why the
    model cannot be adapted so. seconds: what the training may take; None: as long as in the paper.
    """
    record: dict[str, Any] = {"model": cell.model, "way": cell.way, "shots": cell.shots, "seed": cell.seed}
    hold = HOLD if cell.shots != 1 else 0.0  # of one picture of a class none is left
    budget = None if seconds is None else Budget(seconds=seconds)
    began = time.perf_counter()
    try:
        fit(
            cell.model,
            TOWER_WAYS[cell.way],
            data,
            run,
            shots=cell.shots or None,
            seed=cell.seed,
            budget=budget,
            settings={"hold": hold},
        )
    except Interrupted:
        raise KeyboardInterrupt from None  # the training is saved, and goes on with the same command: it is not skipped
    except DiptychError as error:
        return {**record, "skipped": str(error)}
    spent = RunFiles(run).spent()
    found: dict[str, Any] = {"accuracy": None, "loss": None, "temperature": 1.0, "folds": 0}
    source = open_source(RunFiles(run).recipe().data.train)
    learned_from = source.split("train")
    if hold and len(held := unseen(labelled(learned_from), labelled(source.split("validation"), "test"))):
        logits, y = logits_of(opened(run), held), held.labels
        found |= {"accuracy": balanced_accuracy(logits, y), "loss": log_loss(logits, y), "held_out": len(y)}
    pictures = len(learned_from)
    settings = {"hold": hold, **({} if seconds is None else {"seconds": round(seconds)})}
    return {
        **record, **found, "pictures": pictures, "settings": settings, "tried": 1, "run": str(run), "flops": spent.get("flops"),
        "seconds": time.perf_counter() - began,
    }  # fmt: skip


def unseen(train: Pictures, held: Pictures) -> Pictures:
    """The pictures held out, without broken ones and those that nearly repeat a picture of their class that the run learned from:
    these would be named right by memory.
    """
    if not len(train) or not len(held):
        return held
    both, n = joined([train, held]), len(train)
    prints, broken = vectors_of(Fingerprints(), both)
    good = np.array([i for i in range(len(both)) if i not in broken], dtype=np.int64)
    pairs = good[near_pairs(prints[good])]
    group = groups_of(len(both), pairs[both.labels[pairs[:, 0]] == both.labels[pairs[:, 1]]])
    return held.rows([i for i in range(len(held)) if group[n + i] >= n and n + i not in broken])


def logits_of(model: AdaptedModel, pictures: Pictures) -> np.ndarray:
    """The model's logits of pictures, float64 [N, C], a few of them in memory at a time."""
    logits = np.zeros((len(pictures), len(model.classes)))
    for start in range(0, len(pictures), CHUNK):
        rows = range(start, min(start + CHUNK, len(pictures)))
        logits[start : start + len(rows)] = model.logits([pictures.read(i) for i in rows])
    return logits


def tested_tower(record: dict[str, Any], test: Pictures) -> dict[str, Any]:
    """The record with what the run achieves on the test pictures."""
    model = opened(Path(record["run"]))
    order = [model.classes.index(name) if name in model.classes else -1 for name in test.names]
    logits = np.full((len(test), len(test.names)), NEVER)
    known = [i for i, at in enumerate(order) if at >= 0]
    logits[:, known] = logits_of(model, test)[:, [order[i] for i in known]]
    spent = RunFiles(Path(record["run"])).spent()
    made = {
        **measures(logits, test.labels),
        "learning_seconds": 0.0,
        "parameters": int(spent.get("trainable_parameters", 0)),
    }
    return {**record, "test": made}


def opened(run: Path) -> AdaptedModel:
    """The model of a run that learned classes."""
    model = load(run)
    if not isinstance(model, AdaptedModel):
        raise DiptychError(f"{run}: has no classes; train it again")
    return model
