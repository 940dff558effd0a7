"""CLIPScore and RefCLIPScore (Hessel et al., arXiv:2104.08718): captions scored by a model with two embeddings.

Embeddings float [N, E], of any length: they are normalised here. Only captions scored by the same model can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diptych.benchmarks.controls import derangement
from diptych.benchmarks.inputs import read_json, table_of
from diptych.benchmarks.records import Result
from diptych.benchmarks.results import of_credits
from diptych.core.arrays import unit_rows
from diptych.core.errors import DiptychError, counted, nearest

PREFIX = "A photo depicts "
WEIGHT = 2.5


def clipscore(image: np.ndarray, caption: np.ndarray) -> np.ndarray:
    """2.5 · max(cos, 0) of each image and its caption (eq. 1); float [N]."""
    score: np.ndarray = WEIGHT * np.maximum((unit_rows(image, np.float64) * unit_rows(caption, np.float64)).sum(-1), 0)
    return score


def refclipscore(image: np.ndarray, caption: np.ndarray, references: Sequence[np.ndarray]) -> np.ndarray:
    """Harmonic mean of CLIPScore and the best cosine of the caption with its references [R_i, E], at least 0 (eq. 2); float [N]."""
    alone, unit = clipscore(image, caption), unit_rows(caption, np.float64)
    best = np.array([max(0.0, float((unit_rows(r, np.float64) @ u).max())) for r, u in zip(references, unit, strict=True)])
    total = alone + best
    score: np.ndarray = np.divide(2 * alone * best, total, out=np.zeros_like(total), where=total > 0)
    return score


def score_by_model(
    model: Any,
    folder: Path,
    files: dict[str, str],
    generated: dict[str, str],
    references: dict[str, list[str]] | None,
    progress: Callable[[int, int], None] | None = None,
    batch: int = 64,
) -> list[Result]:
    """CLIPScore and, with references, RefCLIPScore of captions {image id: text}. ``files``: {image id: name in ``folder``}.

    Shuffled: each caption with the image of another. Raises DiptychError if the model does not embed both images and texts, or for
    a missing image.
    """
    from diptych.data.image import decode

    missing = {"embed_image", "embed_text"} - set(model.capabilities)
    if missing:
        raise DiptychError(f"CLIPScore needs a model with {' and '.join(sorted(missing))}; '{model.name}' does not have them")
    keys = sorted(generated)
    absent = [k for k in keys if not (folder / files[k]).is_file()]
    if absent:
        raise DiptychError(f"{folder}: {len(absent)} of {counted(len(keys), 'image')} missing, the first {files[absent[0]]}")
    images, texts, refs = [], [], []
    for start in range(0, len(keys), batch):
        part = keys[start : start + batch]
        images.append(model.embed_image([decode((folder / files[k]).read_bytes(), files[k]) for k in part]))
        texts.append(model.embed_text([PREFIX + generated[k] for k in part]))
        if references is not None:
            flat = [PREFIX + r for k in part for r in references[k]]
            refs += np.split(model.embed_text(flat), np.cumsum([len(references[k]) for k in part])[:-1])
        if progress:
            progress(min(start + batch, len(keys)), len(keys))
    image, text = np.concatenate(images), np.concatenate(texts)
    order = derangement(len(keys))
    wrong = {} if order is None else {"clipscore": clipscore(image[order], text)}
    right = {"clipscore": clipscore(image, text)}
    if references is not None:
        right["refclipscore"] = refclipscore(image, text, refs)
        if order is not None:
            wrong["refclipscore"] = refclipscore(image[order], text, [refs[i] for i in order])
    return [
        of_credits("captions", name, v, keys, bounded=False, controls={"shuffled": float(wrong[name].mean())} if wrong else {})
        for name, v in right.items()
    ]


def image_files(references: Path, folder: Path, ids: Sequence[str]) -> dict[str, str]:
    """{image id: file name}: from a COCO file's ``images``, else the file in ``folder`` with the id as its name."""
    document = read_json(references) if references.suffix.lower() == ".json" else {}
    if isinstance(document, dict) and document.get("images"):
        table = table_of(document, references, "images")
        names = dict(zip(table.unique("id"), table.column("file_name", "text"), strict=True))
    else:
        if not folder.is_dir():
            raise DiptychError(f"{folder}: no such folder")
        names = {path.stem: path.name for path in folder.iterdir()} | {path.name: path.name for path in folder.iterdir()}
    lost = [i for i in ids if i not in names]
    if lost:
        raise DiptychError(
            f"no image file is known for {len(lost)} of {len(ids)} ids: {', '.join(lost[:3])}{nearest(lost[0], list(names)[:1000])}"
        )
    return {i: names[i] for i in ids}
