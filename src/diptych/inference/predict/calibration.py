"""The pictures from which an error rate is computed: those of training, by heads that did not see them, or others with known
classes.
"""

from __future__ import annotations

import io
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from diptych.core.errors import DiptychError, counted
from diptych.core.files import write_atomically

FILE = "calibration.npz"


def save_calibration(folder: Path, logits: np.ndarray, labels: np.ndarray) -> None:
    """Writes out-of-fold logits [n, C], before they are divided by a temperature, and the classes of the pictures [n] next to
    adapted.json. Rows with NaN, of pictures that were never left out, stay; ``read_calibration`` leaves them out.
    """
    data = io.BytesIO()
    np.savez(data, logits=np.asarray(logits, dtype=np.float32), labels=np.asarray(labels, dtype=np.int64))
    write_atomically(folder / FILE, lambda path: path.write_bytes(data.getvalue()))


def read_calibration(folder: Path, classes: int, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray] | None:
    """Probabilities [n, C] and classes int [n] of ``save_calibration``; None if there is no file.

    classes: C of the model. DiptychError for a file that is damaged or does not fit.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    remedy = "adapt the model again, or give --calibrate ADDRESS"
    try:
        with np.load(path, allow_pickle=False) as file:
            logits, labels = np.asarray(file["logits"], dtype=np.float64), np.asarray(file["labels"])
    except KeyError as error:
        raise DiptychError(f"{path}: there is no array {error}; {remedy}") from None
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise DiptychError(f"{path}: cannot be read ({error}); {remedy}") from None
    if logits.ndim != 2 or logits.shape[1] != classes or labels.shape != logits.shape[:1]:
        raise DiptychError(
            f"{path}: logits {list(logits.shape)} and labels {list(labels.shape)} do not fit the model's "
            f"{counted(classes, 'class', 'classes')}; {remedy}"
        )
    left_out = np.isfinite(logits).all(1)
    logits, labels = logits[left_out] / temperature, labels[left_out].astype(np.int64)
    if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
        raise DiptychError(f"{path}: labels from {labels.min()} to {labels.max()}; expected 0 to {classes - 1}; {remedy}")
    e = np.exp(logits - logits.max(1, keepdims=True, initial=-np.inf))
    return e / e.sum(1, keepdims=True), labels
