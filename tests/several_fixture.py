"""Pictures of fields in several colours, a table of their labels, and a model that sees which colours there are."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from choose_fixture import picture
from colours_fixture import COLOURS, NAMES, ColourModel

MODEL = "several_fixture:Fields"


class Fields(ColourModel):
    """The share of the pixels that are nearest to each colour, as a unit vector."""

    key = "fields"

    def embed_image(self, images: Sequence[np.ndarray]) -> np.ndarray:
        rows = []
        for image in images:
            hues = image.reshape(-1, 3) / np.maximum(image.reshape(-1, 3).max(1, keepdims=True), 1)
            known = np.array(list(COLOURS.values())) / np.max(list(COLOURS.values()), axis=1, keepdims=True)
            nearest = np.linalg.norm(hues[:, None] - known[None], axis=-1).argmin(1)
            rows.append(np.bincount(nearest, minlength=len(known)) + 1.0)
        x = np.stack(rows)
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def mixed(labels: Sequence[str], seed: int) -> np.ndarray:
    """Stripes in these colours; a dark grey-green one where there are none."""
    stripes = [picture(name, 100 * seed + i) for i, name in enumerate(labels)] or [picture("grey", seed) // 3]
    return np.concatenate(stripes, axis=1)


def table(folder: Path, n: int = 60, seed: int = 0, separator: str = "|", name: str = "metadata.csv") -> Path:
    """n pictures with any of three colours, none too, and their table."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(n):
        labels = [c for c in NAMES[:3] if rng.random() < 0.4]
        Image.fromarray(mixed(labels, i)).save(folder / f"{i:03d}.png")
        rows.append((f"{i:03d}.png", separator.join(labels)))
    with (folder / name).open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "labels"), *rows])
    return folder
