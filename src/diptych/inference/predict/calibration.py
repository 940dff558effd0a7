"""The pictures from which an error rate is computed: those of training, by heads that did not see them, or others with known
classes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from diptych.core.errors import DiptychError, counted

FILE = "calibration.safetensors"  # written by ``diptych adapt`` next to adapted.json


def read_calibration(folder: Path, classes: int, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray] | None:
    """Probabilities [n, C] and classes int [n] of the training pictures of an adapted model; None if it has no such file.

    The file has out-of-fold ``logits`` [n, C], before they are divided by the temperature, and ``labels`` [n]. Rows with NaN, of
    pictures that were never left out, are not used. classes: C of the model. DiptychError for a file that is damaged or does not
    fit.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    remedy = "adapt the model again, or give --calibrate ADDRESS"
    try:
        arrays = load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise DiptychError(f"{path}: cannot be read ({error}); {remedy}") from None
    if missing := [name for name in ("logits", "labels") if name not in arrays]:
        raise DiptychError(f"{path}: there is no array '{missing[0]}'; {remedy}")
    logits, labels = arrays["logits"].astype(np.float64), arrays["labels"]
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
