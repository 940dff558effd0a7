"""The class of each picture in a table, with its probability, and whether the model is sure at a chosen error rate."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from diptych.core.capabilities import Model
from diptych.core.errors import DiptychError
from diptych.core.progress import CountDisplay
from diptych.inference.adapted import AdaptedModel
from diptych.inference.predict.calibration import FILE, read_calibration
from diptych.inference.predict.classifier import Classifier
from diptych.inference.predict.conformal import Conformal, Kind, calibrated, check_error, uniform
from diptych.inference.predict.parts import Parts, Row, fill
from diptych.inference.predict.pictures import Picture, Pictures, pictures_of
from diptych.inference.predict.table import form_of

ENDINGS = (".csv", ".parquet", ".jsonl")
ERROR = 0.1  # the error rate, if none is given


def _all_of(pictures: Pictures) -> str:
    """A version that changes when a picture is added: where all are judged together, the others would have to be judged again."""
    return hashlib.blake2b("\n".join([pictures.version, *pictures.keys]).encode(), digest_size=8).hexdigest()


def schema_of(top: int) -> pa.Schema:
    """The columns: id, the likeliest classes with their probabilities, the set, whether it does not have exactly one class, and why
    a picture could not be read.
    """
    ranks = ["", *(f"_{k}" for k in range(2, top + 1))]
    classes = [field for k in ranks for field in ((f"class{k}", pa.string()), (f"probability{k}", pa.float64()))]
    return pa.schema(
        [("id", pa.string()), *classes, ("set", pa.list_(pa.string())), ("unsure", pa.bool_()), ("reason", pa.string())]
    )


def predict(
    model: Model,
    address: str,
    classifier: Classifier,
    pictures: Pictures,
    out: Path,
    *,
    top: int = 3,
    error: float | None = None,
    kind: Kind = "lac",
    calibrate: str | None = None,
    each_class: bool = False,
    overwrite: bool = False,
    batch: int = 32,
    quiet: bool = False,
    note: Callable[[str], Any] = lambda text: None,
) -> dict[str, Any]:
    """Writes the table and returns what is known about it: settings, threshold, and the numbers of pictures, ``broken`` ones and
    ``unsure`` ones.

    address: of the model. top: how many of the likeliest classes. error: the share of pictures whose set may miss the true class;
    None: ``ERROR`` where there are calibration pictures, else no sets. calibrate: an address of pictures with classes that the
    model did not learn from; None: those kept with an adapted model. each_class: the error rate holds in each class. Raises
    Interrupted on Ctrl-C.
    """
    check_error(ERROR if error is None else error)
    top = min(top, len(classifier.names))
    settings = {
        "command": "predict",
        "model": address,
        "key": getattr(model, "key", None),
        "data": pictures.address,
        "version": pictures.version if classifier.judge is None else _all_of(pictures),
        "classes": list(classifier.names),
        "top": top,
        "error": error,
        "sets": kind,
        "calibrate": calibrate,
        "each_class": each_class,
    }
    parts = Parts(out, form_of(out, ENDINGS), schema_of(top), settings, pictures, overwrite)
    if parts.finished:
        note(f"{out} is complete already")
        return parts.known()
    with parts.opened():
        known = parts.known()
        if "conformal" in known:  # of work that is continued: all rows get the same threshold
            conformal = Conformal.from_dict(known["conformal"]) if known["conformal"] else None
            temperature = float(known["temperature"])
        else:
            conformal, temperature = conformal_of(model, address, classifier, error, kind, calibrate, each_class, batch, note)
            parts.note(conformal=None if conformal is None else conformal.to_dict(), temperature=temperature)

        def rows_of(shown: Sequence[Picture]) -> list[list[Row]]:
            """One row for each picture."""
            read = [p for p in shown if not p.reason]
            if not read:
                return [[{"id": p.id, "reason": p.reason}] for p in shown]
            judged = [p.probabilities for p in read if isinstance(p, Judged)]
            given = judged or classifier.probabilities([p.image for p in read if p.image is not None])
            probabilities = np.asarray(given, dtype=np.float64)
            found = iter(_rows(classifier, conformal, temperature, [p.id for p in read], probabilities, top))
            return [[{"id": p.id, "reason": p.reason} if p.reason else next(found)] for p in shown]

        shown = pictures if classifier.judge is None else judged_together(classifier, pictures, batch, quiet)
        fill(parts, shown, rows_of, "predicting", batch, quiet)
        return parts.close()


@dataclass(frozen=True)
class Judged(Picture):
    """A picture that was judged together with all others."""

    probabilities: np.ndarray | None = None


def judged_together(classifier: Classifier, pictures: Pictures, batch: int, quiet: bool) -> Pictures:
    """The pictures as ``Judged``: first the vectors of all of them, then their probabilities in one call."""
    assert classifier.vectors is not None and classifier.judge is not None
    read: list[Picture] = []
    vectors: list[np.ndarray] = []
    with CountDisplay("embedding", len(pictures), 0, unit="pictures", disable=quiet) as display:
        for start in range(0, len(pictures), batch):
            shown = [pictures.read(i) for i in range(start, min(start + batch, len(pictures)))]
            if images := [p.image for p in shown if p.image is not None]:
                vectors += list(np.asarray(classifier.vectors(images)))
            read += [replace(p, image=None) for p in shown]
            display(len(read))
    probabilities = iter(classifier.judge(np.stack(vectors)) if vectors else ())
    judged = [p if p.reason else Judged(p.id, None, p.captions, p.label, "", next(probabilities)) for p in read]
    return replace(pictures, read=lambda index: judged[index])


def _rows(
    classifier: Classifier, conformal: Conformal | None, temperature: float, ids: list[str], probabilities: np.ndarray, top: int
) -> list[Row]:
    if probabilities.shape != (len(ids), len(classifier.names)) or not np.isfinite(probabilities).all():
        raise DiptychError(
            f"the model gave {list(probabilities.shape)} probabilities for {len(ids)} pictures and {len(classifier.names)} "
            "classes"
            f"{'' if np.isfinite(probabilities).all() else ', some of them no numbers'}"
        )
    order = np.argsort(-probabilities, axis=1, kind="stable")
    sets = None if conformal is None else conformal.sets(probabilities, uniform(ids) if conformal.kind == "aps" else None)
    probabilities = tempered(probabilities, temperature)  # of the sets not, so that their promise is exact
    rows = []
    for i, name in enumerate(ids):
        row: Row = {"id": name}
        for rank, c in enumerate(order[i, :top]):
            end = f"_{rank + 1}" if rank else ""
            row |= {f"class{end}": classifier.names[c], f"probability{end}": float(probabilities[i, c])}
        if sets is not None:
            members = [classifier.names[c] for c in order[i] if sets[i, c]]
            row |= {"set": members, "unsure": len(members) != 1}
        rows.append(row)
    return rows


def conformal_of(
    model: Model,
    address: str,
    classifier: Classifier,
    error: float | None,
    kind: Kind,
    calibrate: str | None,
    each_class: bool = False,
    batch: int = 32,
    note: Callable[[str], Any] = lambda text: None,
) -> tuple[Conformal | None, float]:
    """The sets of an error rate, and the temperature of the probabilities of names alone, fitted on the calibration pictures.

    No sets, and 1, if no rate was given and there are no pictures to compute them from, which ``note`` says; 1 for learned classes,
    which have a temperature of their own.

    DiptychError if an error rate was given and there are none.
    """
    rate = ERROR if error is None else error
    if calibrate is not None:
        probabilities, labels = known_pictures(classifier, calibrate, batch, note)
        temperature = 1.0 if classifier.learned else fitting_temperature(probabilities, labels)
        return calibrated(probabilities, labels, rate, kind, calibrate, each_class), temperature
    kept = None
    if classifier.learned:
        temperature = model.temperature if isinstance(model, AdaptedModel) else 1.0
        kept = read_calibration(Path(address), len(classifier.names), temperature)
    if kept is not None and len(kept[1]):
        return calibrated(*kept, rate, kind, FILE, each_class), 1.0
    if kept is not None:
        missing = f"{Path(address) / FILE} has no picture that was left out in training (each class has one picture)"
    elif classifier.learned:
        missing = f"{Path(address) / FILE} is missing: an older version, or a model of your own, wrote no out-of-fold logits"
    else:
        missing = "the classes are only names so far"
    remedy = "give pictures with known classes that the model did not learn from: --calibrate classes:DIR"
    if error is not None:
        raise DiptychError(f"--error {error:g}: {missing}; {remedy}")
    note(f"the columns set and unsure are empty: {missing}; {remedy}")
    return None, 1.0


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities [N, C] of logits that are divided by the temperature."""
    if temperature == 1:
        return probabilities
    logits = np.log(np.maximum(probabilities, 1e-300)) / temperature
    e = np.exp(logits - logits.max(1, keepdims=True))
    result: np.ndarray = e / e.sum(1, keepdims=True)
    return result


def fitting_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature with the least mean −log probability of the true classes (Guo et al. 2017, arXiv:1706.04599), of a grid from
    0.05 to 100; labels of −1 are not used.
    """
    known = np.flatnonzero(labels >= 0)
    p, y = probabilities[known], labels[known]

    def loss(temperature: float) -> float:
        """Of these pictures."""
        own = tempered(p, temperature)[np.arange(len(y)), y]
        return float(-np.log(np.maximum(own, 1e-300)).mean())

    return float(min(np.geomspace(0.05, 100, 153), key=loss))


def known_pictures(
    classifier: Classifier, address: str, batch: int = 32, note: Callable[[str], Any] = lambda text: None
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [n, C] of the pictures of an address that have a class, and the classes, int [n]; −1: not one of the model's.

    DiptychError if no picture has one of the model's classes.
    """
    pictures = pictures_of(address, captions=True)
    number = {name: i for i, name in enumerate(classifier.names)}
    number = {**{name.replace("_", " "): i for name, i in number.items()}, **number}
    probabilities, labels, others = [], [], set()
    for start in range(0, len(pictures), batch):
        shown = [pictures.read(i) for i in range(start, min(start + batch, len(pictures)))]
        usable = [p for p in shown if p.image is not None and p.label is not None]
        if not usable:
            continue
        given = classifier.vectors or classifier.probabilities
        probabilities.append(np.asarray(given([p.image for p in usable if p.image is not None])))
        for p in usable:
            name = p.label or ""
            labels.append(number.get(name, number.get(name.replace("_", " "), -1)))
            others |= {name} if labels[-1] < 0 else set()
    if not labels:
        raise DiptychError(f"--calibrate {address}: no picture with a class; expected classes:DIR, or a table with a class column")
    if not any(label >= 0 for label in labels):
        listed = ", ".join(sorted(others)[:5])
        raise DiptychError(
            f"--calibrate {address}: none of its classes ({listed}) is one of the model's ({', '.join(classifier.names[:5])} …)"
        )
    if others:
        note(f"--calibrate {address}: {', '.join(sorted(others)[:10])}: not among the model's classes; no set can hold them")
    result = np.concatenate(probabilities) if classifier.judge is None else classifier.judge(np.concatenate(probabilities))
    return np.asarray(result, np.float64), np.array(labels)
