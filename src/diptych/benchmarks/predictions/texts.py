"""Captions: against reference captions (COCO's metrics, CLIPScore) and against the objects of the image (CHAIR)."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from diptych.benchmarks.controls import derangement
from diptych.benchmarks.inputs import Table, match, read_json, read_rows
from diptych.benchmarks.metrics import captions as metric
from diptych.benchmarks.metrics import chair as objects
from diptych.benchmarks.predictions.common import of_credits, of_sums
from diptych.benchmarks.records import Result
from diptych.core.errors import DiptychError, nearest


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
    shuffled: dict[str, float] = {}
    if order is not None:
        shuffled = metric.caption_scores({k: references[keys[i]] for k, i in zip(keys, order, strict=True)}, generated)
    corpus = metric.Corpus(references, generated)
    counts, rouge, cider = corpus.bleu_counts(), corpus.rouge_l(), corpus.cider_d()
    found = [of_sums("captions", f"bleu{n}", counts, partial(_bleu, n), keys) for n in (1, 2, 3, 4)]
    found += [of_credits("captions", "rouge_l", rouge, keys), of_credits("captions", "cider", cider, keys, bounded=False)]
    return [replace(r, controls={"shuffled": shuffled[r.metric]} if shuffled else {}) for r in found]


def _bleu(n: int, sums: np.ndarray) -> np.ndarray:
    return metric.bleu_of_sums(sums)[..., n - 1]


def _chair(name: str, sums: np.ndarray) -> np.ndarray:
    return objects.chair_of_counts(sums)[name]


def judge_by_java(generated: dict[str, str], references: dict[str, list[str]]) -> tuple[list[Result], list[str]]:
    """METEOR and SPICE through the known package, and why not where Java, the package or its models are missing."""
    missing = [] if shutil.which("java") else ["Java (apt-get install default-jre-headless)"]
    package = importlib.util.find_spec("pycocoevalcap")
    if package is None:
        missing.append("pycocoevalcap (pip install pycocoevalcap)")
    if missing or package is None:
        return [], [f"{name}: not computed, needs {' and '.join(missing)}" for name in ("METEOR", "SPICE")]
    notes, scorers = [], ["meteor"]
    models = Path(next(iter(package.submodule_search_locations or [""]))) / "spice" / "lib"
    if list(models.glob("stanford-corenlp-*-models.jar")):
        scorers.append("spice")
    else:  # the package would fetch 400 MB without a word
        fetch = "python -c 'from pycocoevalcap.spice.spice import Spice; Spice()' fetches it"
        notes.append(f"SPICE: not computed, needs Stanford CoreNLP in {models} ({fetch})")
    keys, found = sorted(generated), []
    for name in scorers:
        try:
            # the package's Java programs talk on our standard streams
            with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet), _descriptor_to(2, quiet.fileno()):
                value, credits = _by_package(name, keys, generated, references)
        except Exception as error:  # whatever Java or its models did not find
            notes.append(f"{name.upper()}: not computed, {type(error).__name__}: {str(error)[:200]}")
        else:
            at = of_credits("captions", name, np.nan_to_num(credits), keys)
            # METEOR's score of a corpus is none of its means: the captions lend the interval, the corpus its centre
            low, high = (None if end is None else end + value - (at.value or 0.0) for end in (at.low, at.high))
            found.append(replace(at, value=value, low=low, high=high))
    return found, notes


def _by_package(
    name: str, keys: Sequence[str], generated: dict[str, str], references: dict[str, list[str]]
) -> tuple[float, list[float]]:
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    made = PTBTokenizer().tokenize({k: [{"caption": generated[k]}] for k in keys})
    true = PTBTokenizer().tokenize({k: [{"caption": c} for c in references[k]] for k in keys})
    if name == "meteor":
        value, scores = Meteor().compute_score(true, made)
        return float(value), [float(v) for v in scores]
    from pycocoevalcap.spice.spice import Spice

    value, items = Spice().compute_score(true, made)
    return float(value), [item["All"]["f"] for item in items]


@contextlib.contextmanager
def _descriptor_to(descriptor: int, target: int) -> Iterator[None]:
    """Whatever child processes write to ``descriptor`` goes to ``target`` meanwhile."""
    kept = os.dup(descriptor)
    try:
        os.dup2(target, descriptor)
        yield
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)


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
    from diptych.benchmarks.metrics import clipscore
    from diptych.data.image import decode

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
