"""Which objects an image shows: from the samples themselves, or from a COCO instances file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from diptych.benchmarks.base import Items, NotApplicable, readable
from diptych.benchmarks.inputs import read_json, table_of
from diptych.core.errors import DiptychError
from diptych.core.sample import Sample
from diptych.data.source import Problem, Source

LIMIT = 500  # samples, if no number is given


def instances(path: str | Path) -> dict[str, list[str]]:
    """{image id or file name: names of its objects} of a COCO instances file; images without objects have an empty list.

    Raises DiptychError for another kind of file, and for a category or an image that the file does not list.
    """
    path, document = Path(path), read_json(path)
    if not isinstance(document, dict) or not {"categories", "annotations"} <= set(document):
        raise DiptychError(f"{path}: expected COCO instances with the lists 'images', 'annotations' and 'categories'")
    images, annotations, categories = (
        table_of({key: document.get(key, [])}, path, key) for key in ("images", "annotations", "categories")
    )
    names = dict(zip(categories.unique("id"), categories.column("name", "text"), strict=True))
    objects: dict[str, list[str]] = {image: [] for image in images.unique("id")}
    columns = annotations.column("image_id", "id"), annotations.column("category_id", "id")
    for i, (image, category) in enumerate(zip(*columns, strict=True)):
        if category not in names:
            raise DiptychError(f"{annotations.where(i)}: there is no category {category}")
        if image not in objects and len(images):
            raise DiptychError(f"{annotations.where(i)}: there is no image {image}")
        objects.setdefault(image, []).append(names[category])
    files = images.column("file_name", default=None)
    return objects | {str(file): objects[image] for image, file in zip(list(objects), files, strict=False) if file}


def labels_in(path: str) -> list[list[str]]:
    """The objects of every image of a COCO instances file."""
    return list({id(names): names for names in instances(path).values()}.values())  # each image is listed by id and by name


def labels_of(sample: Sample, known: dict[str, list[str]] | None) -> list[str] | None:
    """The objects of a sample, each once; None if they are not known. ``known``: what ``instances`` returns."""
    if known is not None:
        given = next((known[str(k)] for k in (sample.extra.get("coco_id"), sample.id) if str(k) in known), None)
    else:
        given = sample.extra.get("labels")
        given = [given] if isinstance(given, str) else given
    return None if given is None else list(dict.fromkeys(map(str, given)))


def labelled(source: Source, n: int = 0, file: str = "") -> Items:
    """(sample, its objects) of the first n samples with known objects (0: 500). Raises NotApplicable if there are none."""
    known = instances(file) if file else None
    items: list[tuple[Sample, list[str]]] = []
    problems: list[Problem] = []
    for count, sample in enumerate(readable(source, problems, range(min(len(source), 20 * (n or LIMIT)))), 1):
        labels = labels_of(sample, known)
        if labels and sample.image is not None:
            items.append((sample, labels))
        if len(items) == (n or LIMIT) or (not items and count == 100):
            break
    if len(items) < 2:
        raise NotApplicable("no labels: its samples have no extra['labels']; give ?labels=instances.json of COCO")
    return Items(items, problems)


def frequencies(labels: Sequence[Sequence[str]]) -> tuple[Counter[str], dict[str, Counter[str]]]:
    """How many images show each object, and how many show each pair of objects."""
    alone: Counter[str] = Counter()
    together: dict[str, Counter[str]] = {}
    for names in labels:
        alone.update(set(names))
        for a in set(names):
            together.setdefault(a, Counter()).update(set(names) - {a})
    return alone, together
