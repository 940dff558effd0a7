"""Names of class folders that are called like synsets of WordNet, ``n01440764``, as in ImageNet."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from diptych.core.errors import DiptychError
from diptych.data.storage import files

TABLES = ("LOC_synset_mapping.txt", "synset_words.txt", "words.txt")  # of ImageNet at Kaggle, of Caffe, of Tiny ImageNet
ABOVE = 4  # folders above the class folders in which a table is looked for: ImageNet has ILSVRC/Data/CLS-LOC/train
SYNSET = re.compile(r"n\d{8}")


def are_synsets(folders: Sequence[str]) -> bool:
    """Whether all class folders are called so."""
    return bool(folders) and all(SYNSET.fullmatch(name) for name in folders)


def synset_names(directory: str, folders: Sequence[str]) -> tuple[dict[str, str], str]:
    """{folder: name of its class} and the table that they are from; nothing and "" if there is none.

    A line of a table is an id, a space or tab, and synonyms separated by commas. The name is the first synonym; of folders that
    share it, such as the two cranes of ImageNet, all synonyms, and the id too if these are the same. A folder that the table does
    not name is not among the names.
    """
    place = directory.rstrip("/")
    for _ in range(ABOVE + 1):
        for table in TABLES:
            url = files.join(place, table)
            if files.exists(url) and (known := _read(url, set(folders))):
                return _distinct(known), url
        above = files.parent(place)
        if above in (place, "", "/", ".") or place.endswith("://"):
            break
        place = above
    return {}, ""


def _read(url: str, wanted: set[str]) -> dict[str, str]:
    known = {}
    try:
        text = files.read_text(url)
    except (DiptychError, OSError):  # a file of this name about something else
        return {}
    for line in text.splitlines():
        name, _, synonyms = line.strip().replace("\t", " ", 1).partition(" ")
        if name in wanted and synonyms.strip():
            known[name] = synonyms.strip()
    return known


def _distinct(known: dict[str, str]) -> dict[str, str]:
    first = {folder: synonyms.partition(",")[0].strip() for folder, synonyms in known.items()}
    shared = Counter(first.values())
    longer = {folder: first[folder] if shared[first[folder]] == 1 else known[folder] for folder in known}
    shared = Counter(longer.values())
    return {folder: name if shared[name] == 1 else f"{name} ({folder})" for folder, name in longer.items()}
