"""Captions: against reference captions (COCO's metrics, CLIPScore) and against the objects of the image (CHAIR)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from diptych.errors import DiptychError, nearest
from diptych.evaluation.controls import derangement
from diptych.evaluation.inputs import Table, match, read_json, read_rows
from diptych.evaluation.metrics import captions as metric
from diptych.evaluation.metrics import chair as objects
from diptych.evaluation.predictions.common import of_credits, of_sums
from diptych.evaluation.records import Result


def read_captions(results: Path, references: Path, partial: bool = False) -> tuple[dict[str, str], dict[str, list[str]]]:
    """{image: caption} of a COCO results file, {image: reference captions} of a COCO captions file, of the same images.

    ``partial``: images without a result are left out, rather than refused.
    """
    table = read_rows(results, "annotations")
    ids, said = table.unique("image_id"), table.column("caption", "text")
    known = references_of(references)
    wanted = [i for i in known if i in set(ids)] if partial else list(known)
    try:
        match(ids, wanted, table, references)
    except DiptychError as error:
        if not partial and not set(ids) - set(known):
            raise DiptychError(f"{error}; add --partial to judge only the images that have a caption") from None
        raise
    return dict(zip(ids, said, strict=True)), {i: known[i] for i in ids}


def references_of(path: Path) -> dict[str, list[str]]:
    """{image: captions} of a COCO captions file, or of a table with image_id and caption."""
    table = read_rows(path, "annotations")
    found: dict[str, list[str]] = {}
    for image, caption in zip(table.column("image_id", "id"), table.column("caption", "text"), strict=True):
        found.setdefault(image, []).append(caption)
    return found


def judge_captions(generated: dict[str, str], references: dict[str, list[str]]) -> list[Result]:
    """BLEU-1..4, ROUGE-L and CIDEr-D; shuffled: each caption against the references of another image."""
    keys = sorted(generated)
    generated = {k: generated[k] for k in keys}
    order = derangement(len(keys))
    values: dict[str, dict[str, float]] = {"shuffled": {}}
    if order is not None:
        others = {k: references[keys[i]] for k, i in zip(keys, order, strict=True)}
        values["shuffled"] = metric.caption_scores(others, generated)
    counts = metric.bleu_counts(references, generated)
    found = [
        of_sums(
            "captions",
            f"bleu{n}",
            counts,
            partial(_bleu, n),
            keys,
            controls=_of(values, f"bleu{n}"),
        )
        for n in (1, 2, 3, 4)
    ]
    rouge, cider = metric.rouge_l_items(references, generated), metric.cider_d_items(references, generated)
    found.append(of_credits("captions", "rouge_l", [rouge[k] for k in keys], keys, controls=_of(values, "rouge_l")))
    found.append(of_credits("captions", "cider", [cider[k] for k in keys], keys, bounded=False, controls=_of(values, "cider")))
    return found


def _bleu(n: int, sums: np.ndarray) -> np.ndarray:
    return metric.bleu_of_sums(sums)[..., n - 1]


def _chair(name: str, sums: np.ndarray) -> np.ndarray:
    return objects.chair_of_counts(sums)[name]


def _of(values: dict[str, dict[str, float]], name: str) -> dict[str, float | None]:
    return {control: found[name] for control, found in values.items() if name in found}


def judge_by_java(generated: dict[str, str], references: dict[str, list[str]]) -> tuple[list[Result], list[str]]:
    """METEOR and SPICE through the known package, and why not where Java or the package is missing."""
    import shutil

    missing = []
    if shutil.which("java") is None:
        missing.append("Java (apt-get install default-jre-headless)")
    try:
        from pycocoevalcap.meteor.meteor import Meteor
        from pycocoevalcap.spice.spice import Spice
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
    except ImportError:
        missing.append("pycocoevalcap (pip install pycocoevalcap)")
    if missing:
        return [], [f"{name}: not computed, needs {' and '.join(missing)}" for name in ("METEOR", "SPICE")]
    keys = sorted(generated)
    tokenise = PTBTokenizer()
    made = tokenise.tokenize({k: [{"caption": generated[k]}] for k in keys})
    true = tokenise.tokenize({k: [{"caption": c} for c in references[k]] for k in keys})
    found, notes = [], []
    for name, scorer in (("meteor", Meteor), ("spice", Spice)):
        try:
            _, items = scorer().compute_score(true, made)
        except Exception as error:  # whatever Java or its models did not find
            notes.append(f"{name.upper()}: not computed, {type(error).__name__}: {str(error)[:200]}")
            continue
        credits = [item["All"]["f"] for item in items] if name == "spice" else [float(v) for v in items]
        found.append(of_credits("captions", name, np.nan_to_num(credits), keys))
    return found, notes


def judge_by_model(
    model: Any,
    folder: Path,
    files: dict[str, str],
    generated: dict[str, str],
    references: dict[str, list[str]] | None,
    progress: Callable[[int, int], None] | None = None,
    batch: int = 64,
) -> list[Result]:
    """CLIPScore and RefCLIPScore by a model with embed_image and embed_text; ``files``: {image id: name in ``folder``}.

    Shuffled: each caption with the image of another.
    """
    from diptych.data.image import decode
    from diptych.evaluation.metrics import clipscore

    lacking = {"embed_image", "embed_text"} - set(model.capabilities)
    if lacking:
        raise DiptychError(f"CLIPScore needs a model with {' and '.join(sorted(lacking))}; '{model.name}' has none")
    keys = sorted(generated)
    missing = [k for k in keys if not (folder / files[k]).is_file()]
    if missing:
        raise DiptychError(f"{folder}: {len(missing)} of {len(keys)} images are not there, the first {files[missing[0]]}")
    images, texts, refs = [], [], []
    for start in range(0, len(keys), batch):
        part = keys[start : start + batch]
        images.append(model.embed_image([decode((folder / files[k]).read_bytes(), files[k]) for k in part]))
        texts.append(model.embed_text([clipscore.PREFIX + generated[k] for k in part]))
        if references is not None:
            flat = [clipscore.PREFIX + r for k in part for r in references[k]]
            refs += np.split(model.embed_text(flat), np.cumsum([len(references[k]) for k in part])[:-1])
        if progress:
            progress(min(start + batch, len(keys)), len(keys))
    image, text = np.concatenate(images), np.concatenate(texts)
    order = derangement(len(keys))
    wrong = {} if order is None else {"clipscore": clipscore.clipscore(image[order], text)}
    right = {"clipscore": clipscore.clipscore(image, text)}
    if references is not None:
        right["refclipscore"] = clipscore.refclipscore(image, text, refs)
        if order is not None:
            wrong["refclipscore"] = clipscore.refclipscore(image[order], text, [refs[i] for i in order])
    return [
        of_credits("captions", name, v, keys, bounded=False, controls={"shuffled": float(wrong[name].mean())} if wrong else {})
        for name, v in right.items()
    ]


def image_files(references: Path, folder: Path, ids: Sequence[str]) -> dict[str, str]:
    """{image id: file name}: from a COCO file's ``images``, else the one file in ``folder`` named after the id."""
    document = read_json(references) if references.suffix.lower() == ".json" else {}
    listed = document.get("images") if isinstance(document, dict) else None
    if listed:
        table = Table(references, listed, lambda i: f"{references}, images[{i}]")
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


def judge_chair(captions: Path, instances: Path, references: Path | None = None, synonyms: Path | None = None) -> list[Result]:
    """CHAIR of a COCO results file; the truth: labels of a COCO instances file and objects of the reference captions."""
    table = read_rows(captions, "annotations")
    ids, said = table.unique("image_id"), table.column("caption", "text")
    words = read_synonyms(synonyms)
    truth = labels_of(instances, words)
    match([i for i in ids if i in truth], ids, instances, table)
    truth = {i: set(truth[i]) for i in ids}
    if references is not None:
        known = references_of(references)
        match([i for i in ids if i in known], ids, references, table)
        for i in ids:
            truth[i] |= {name for text in known[i] for name in objects.objects_in(text, words)}
    mentioned = [objects.objects_in(text, words) for text in said]
    counts = objects.chair_counts(mentioned, [truth[i] for i in ids], said)
    order = derangement(len(ids))
    shuffled: dict[str, Any] = {}
    if order is not None:
        shuffled = objects.chair_of_counts(objects.chair_counts(mentioned, [truth[ids[i]] for i in order], said).sum(0))
    return [
        of_sums(
            "chair",
            name,
            counts,
            partial(_chair, name),
            ids,
            bounded=name != "length",
            higher_is_better=name in ("recall", "length"),
            controls={"shuffled": float(shuffled[name])} if shuffled and name != "length" else {},
        )
        for name in ("chair_i", "chair_s", "recall", "length")
    ]


def read_synonyms(path: Path | None) -> objects.Vocabulary:
    if path is None:
        return objects.coco_vocabulary()
    if not path.is_file():
        raise DiptychError(f"{path}: no such file")
    try:
        found = objects.vocabulary(path.read_text(encoding="utf-8").splitlines())
    except ValueError as error:
        raise DiptychError(f"{path}, {error}") from None
    if not found:
        raise DiptychError(f"{path}: no synonyms; expected lines such as 'person, man, woman'")
    return found


def labels_of(path: Path, words: objects.Vocabulary) -> dict[str, set[str]]:
    """{image: objects} of a COCO instances file; images that it lists and that have no label get none."""
    document = read_json(path)
    if not isinstance(document, dict) or not {"categories", "annotations"} <= set(document):
        raise DiptychError(f"{path}: expected COCO instances with 'images', 'annotations' and 'categories'")
    parts = {}
    for name in ("images", "annotations", "categories"):
        rows = document.get(name, [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DiptychError(f"{path}: '{name}' must be a list of objects")
        parts[name] = Table(path, rows, lambda i, name=name: f"{path}, {name}[{i}]")  # type: ignore[misc]
    categories = parts["categories"]
    names = dict(zip(categories.unique("id"), categories.column("name", "text"), strict=True))
    known = {name for name in words.values() if name is not None}
    strange = [name for name in names.values() if name not in known]
    if strange:
        raise DiptychError(
            f"{path}: no synonyms are known for the category '{strange[0]}'{nearest(strange[0], known)}; give --synonyms FILE"
        )
    found: dict[str, set[str]] = {image: set() for image in parts["images"].column("id", "id")}
    labels = parts["annotations"]
    for i, (image, category) in enumerate(zip(labels.column("image_id", "id"), labels.column("category_id", "id"), strict=True)):
        if category not in names:
            raise DiptychError(f"{labels.where(i)}: there is no category {category}")
        found.setdefault(image, set()).add(names[category])
    return found
