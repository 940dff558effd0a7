"""Which objects an image shows: from the samples themselves, or from a COCO instances file beside the captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from diptych.benchmarks.tasks.base import Items, NotApplicable, readable
from diptych.benchmarks.tasks.published import content
from diptych.core.sample import Sample
from diptych.data.source import Problem, Source

LIMIT = 500  # samples, where no number is given


def instances(path: str) -> dict[str, list[str]]:
    """{image id or file name: names of the objects in it} of a COCO instances file; images without any are in it too."""
    from diptych.core.errors import DiptychError

    found = content(path)
    lists = ("images", "annotations", "categories")
    if not isinstance(found, dict) or any(not isinstance(found.get(k), list) for k in lists):
        raise DiptychError(f"{path}: not a COCO instances file: needs the lists {', '.join(lists)}")
    try:
        names = {c["id"]: str(c["name"]) for c in found["categories"]}
        objects: dict[str, list[str]] = {str(i["id"]): [] for i in found["images"]}
        for number, one in enumerate(found["annotations"]):
            if one["category_id"] not in names:
                raise DiptychError(f"{path}, annotation {number}: field 'category_id': there is no category {one['category_id']}")
            if str(one["image_id"]) not in objects:
                raise DiptychError(f"{path}, annotation {number}: field 'image_id': there is no image {one['image_id']}")
            objects[str(one["image_id"])].append(names[one["category_id"]])
        return objects | {str(i["file_name"]): objects[str(i["id"])] for i in found["images"] if i.get("file_name")}
    except KeyError as error:
        raise DiptychError(f"{path}: no field {error}; a COCO instances file has it in every entry") from None


def labels_in(path: str) -> list[list[str]]:
    """The objects of every image of a COCO instances file."""
    return list({id(names): names for names in instances(path).values()}.values())  # each image is in it by id and by name


def labels_of(sample: Sample, known: dict[str, list[str]] | None) -> list[str] | None:
    """Its objects, each once; None if nothing is known."""
    if known is not None:
        given = next((known[str(k)] for k in (sample.extra.get("coco_id"), sample.id) if str(k) in known), None)
    else:
        given = sample.extra.get("labels")
        given = [given] if isinstance(given, str) else given
    return None if given is None else list(dict.fromkeys(map(str, given)))


def labelled(source: Source, n: int = 0, file: str = "") -> Items:
    """(sample, its objects) of the first n (0: 500) samples with known objects; NotApplicable if there are none."""
    known = instances(file) if file else None
    items: list[tuple[Sample, list[str]]] = []
    problems: list[Problem] = []
    for seen, sample in enumerate(readable(source, problems, 20 * (n or LIMIT)), 1):
        labels = labels_of(sample, known)
        if labels and sample.image is not None:
            items.append((sample, labels))
        if len(items) == (n or LIMIT) or (not items and seen == 100):
            break
    if len(items) < 2:
        raise NotApplicable("no labels: its samples have no extra['labels']; give ?labels=instances.json of COCO")
    return Items(items, problems)


def frequencies(labels: Sequence[Sequence[str]]) -> tuple[Counter[str], dict[str, Counter[str]]]:
    """How many images show each object, and how many each pair."""
    alone: Counter[str] = Counter()
    together: dict[str, Counter[str]] = {}
    for names in labels:
        alone.update(set(names))
        for a in set(names):
            together.setdefault(a, Counter()).update(set(names) - {a})
    return alone, together
