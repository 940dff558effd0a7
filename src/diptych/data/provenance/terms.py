"""The terms under which pictures, texts and weights are given, as far as files say them. Nothing is guessed."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from diptych.core.errors import counted
from diptych.core.files import read_json_or

NOT_STATED = "not stated where it lies; its origin says"
FILES = re.compile(r"(licen[cs]e|copying)([._-].*)?", re.IGNORECASE)
STATED = re.compile(r"^licen[cs]e(?:_name)?: *(\S.*)$", re.MULTILINE)  # in the head of a card
COLUMNS = ("license", "licence", "license_url", "license_name", "rights", "copyright")  # of a row, in any case
MOST = 8  # kinds of terms of rows that are listed
SPRITES = "CC BY-SA 4.0: drawings by OpenMoji (https://openmoji.org)"


@dataclass(frozen=True)
class Terms:
    """What is known of the terms of some data. by: the file that says it; "" if nobody does."""

    text: str
    by: str = ""


def local(address: str) -> Path | None:
    """The file or directory that a data address names, without its pattern; None if it is not a place on this machine."""
    scheme, mark, rest = address.partition(":")
    if mark and scheme in ("repeated", "control"):
        return local(unquote(rest.partition("?")[0]))
    if scheme == "scenes" or "://" in address:
        return None
    path = Path((rest if mark else address).partition("?")[0]).expanduser()
    while path.parts and any(c in part for part in path.parts for c in "*{["):
        path = path.parent
    return path if path.exists() else None


def card_of(address: str) -> Path | None:
    """The directory that describes some data: the data's own, or the result of a curation around it."""
    path = local(address)
    if path is None:
        return None
    folder = path if path.is_dir() else path.parent
    return folder.parent if (folder.parent / "manifest.json").is_file() and folder.name in ("data", "packed") else folder


def terms_of(address: str) -> Terms:
    """The terms of the data at an address, as a file next to it states them."""
    if address.partition(":")[0] == "scenes" or address.startswith(("repeated:scenes", "control:scenes")):
        return Terms(SPRITES, "Diptych's own table")
    folder = card_of(address)
    return _of_folder(folder) if folder is not None else Terms(NOT_STATED)


def _of_folder(folder: Path) -> Terms:
    card = folder / "README.md"
    if card.is_file() and (stated := STATED.search(_head(card))) and stated[1] != "other":
        return Terms(stated[1], "README.md")
    for file in sorted(folder.iterdir()):
        if file.is_file() and FILES.fullmatch(file.name):
            first = next((line.strip() for line in _text(file).splitlines() if line.strip()), "an empty file")
            return Terms(first[:120], file.name)
    return Terms(NOT_STATED)


def of_weights(address: str) -> Terms:
    """The terms of weights in a directory, as its own model card states them. address: ``hf:DIR``, DIR or a name on a hub."""
    folder = Path(address.removeprefix("hf:").partition("?")[0]).expanduser()
    return _of_folder(folder) if folder.is_dir() else Terms(NOT_STATED)


def of_rows(extras: Iterable[str | Mapping[str, Any] | None]) -> Counter[str]:
    """How many rows state which terms, from the columns of ``COLUMNS``; "" counts the rows that state none. extras: JSON."""
    counts: Counter[str] = Counter()
    for extra in extras:
        row = json.loads(extra) if isinstance(extra, str) else extra or {}
        by_name = {str(k).lower(): v for k, v in row.items()}
        stated = next((by_name[c] for c in COLUMNS if by_name.get(c) not in (None, "")), "")
        counts[str(stated)[:120]] += 1
    return counts


def counted_terms(counts: Mapping[str, int]) -> list[str]:
    """Lines of ``of_rows``, the most frequent first; what is not listed is counted."""
    stated = sorted(((n, t) for t, n in counts.items() if t), key=lambda pair: (-pair[0], pair[1]))
    lines = [f"{text}: {counted(n, 'row')}" for n, text in stated[:MOST]]
    if rest := stated[MOST:]:
        lines.append(f"{counted(len(rest), 'other text')}: {counted(sum(n for n, _ in rest), 'row')}")
    if stated and counts.get(""):
        lines.append(f"none stated: {counted(counts[''], 'row')}")
    return lines


def curated_by(address: str) -> str:
    """One sentence on the curation that made this data; "" if none did."""
    folder = card_of(address)
    if folder is None or not (folder / "manifest.json").is_file():
        return ""
    made: dict[str, Any] = read_json_or(folder / "manifest.json", {})
    if not {"plan", "data", "rows", "kept"} <= made.keys():
        return ""
    return (
        f"kept by `diptych curate {made['plan']}` from `{made['data']}`: {made['kept']:,} of {counted(made['rows'], 'row')}; "
        f"its data sheet is `{folder / 'README.md'}`"
    )


def _head(card: Path) -> str:
    """The YAML at the top of a card; the whole text if it has none."""
    text = _text(card)
    return text.split("---", 2)[1] if text.startswith("---") and text.count("---") > 1 else text


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
