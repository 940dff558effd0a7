"""What would be sent of an export or a curated set: a list of files with their hashes. Nothing else is ever sent."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diptych.core.errors import DiptychError
from diptych.core.files import read_json
from diptych.inference.onnx.files import MANIFEST, UNHASHED, verified_files

MARK = "export.json"  # of an export to another library
CURATED = "manifest.json"  # of a curated set
BESIDE = ("README.md", CURATED, "plan.yaml", "costs.json")  # of a curated set, next to its data
FORMATS = {".safetensors", ".json", ".md", ".jinja", ".txt", ".model"}  # what exports of versions without a list hold
PLACES = re.compile(r"(/home/|/Users/|/root/|[A-Z]:\\\\?Users\\)[^\s\"'`,)|]*")
TEXTS = {".md", ".json", ".yaml"}
LARGE = 4_000_000  # bytes of a text file that is not read for places
PARTIAL = (".incomplete", ".tmp", ".lock")


@dataclass(frozen=True)
class Listed:
    """A file that would be sent. name: in the repository, with ``/``."""

    name: str
    place: Path
    size: int
    sha256: str


@dataclass(frozen=True)
class Listing:
    """All files that would be sent, by name; left_out: {name: why} of those in the directory that would not."""

    folder: Path
    kind: Literal["model", "dataset"]
    files: tuple[Listed, ...]
    left_out: dict[str, str]
    notes: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(f.size for f in self.files)


def listing(folder: Path) -> Listing:
    """What would be sent of a directory. Raises DiptychError if it is no export and no curated set, or if files have changed since
    it was made.
    """
    folder = Path(folder)
    if (folder / MARK).is_file():
        kind, names, why = "model", _of_export(folder), "not a file of the export"
    elif (folder / MANIFEST).is_file():
        kind, names, why = "model", _of_onnx(folder), "not a file of the export"
    elif (folder / CURATED).is_file() and (folder / "plan.yaml").is_file():
        kind, names, why = "dataset", _of_set(folder), "not what was kept"
    elif (folder / "recipe.yaml").is_file():
        raise DiptychError(f"{folder} is a run: export it first (`diptych export {folder}`), then push the export")
    else:
        raise DiptychError(f"{folder}: neither an export of `diptych export` nor a result of `diptych curate`")
    for name in names:
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise DiptychError(f"{folder / name} is a link to a place outside of the directory; it is not sent")
    files = tuple(_listed(folder, name) for name in sorted(names))
    inside = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file()]
    left = {_top(name): why for name in inside if name not in names}
    return Listing(folder, kind, files, left, tuple(_notes(files)))  # type: ignore[arg-type]


def _of_export(folder: Path) -> set[str]:
    """The files that the export wrote: those of its own list, or, of an older version, those of the formats that exports have."""
    made: dict[str, Any] = read_json(folder / MARK)
    if "files" in made:
        changed = [n for n, digest in made["files"].items() if not (folder / n).is_file() or blake2b(folder / n) != digest]
        if changed:
            raise DiptychError(f"{folder / changed[0]} is not as it was exported; export the run again")
        return {*made["files"], MARK, "README.md"}
    files = [p for p in folder.rglob("*") if p.is_file() and p.suffix in FORMATS]
    return {p.relative_to(folder).as_posix() for p in files if not _hidden(p.relative_to(folder))}


def _of_onnx(folder: Path) -> set[str]:
    return {*verified_files(folder)["files"], *(name for name in UNHASHED if (folder / name).is_file())}


def _of_set(folder: Path) -> set[str]:
    """The kept rows and what describes them; decisions hold the texts of rows that were dropped, and stay here."""
    made: dict[str, Any] = read_json(folder / CURATED)
    parts = {f"data/{s['file']}": s.get("blake2b") for s in made["shards"] if "file" in s}
    for name, digest in parts.items():
        if not (folder / name).is_file() or (digest and blake2b(folder / name) != digest):
            raise DiptychError(f"{folder / name} is not as it was curated; run `diptych curate` again")
    kept = folder / ("packed" if made["output"] == "packed" else "data")
    data = {p.relative_to(folder).as_posix() for p in kept.rglob("*") if p.is_file() and not _hidden(p.relative_to(folder))}
    return {*data, *(name for name in BESIDE if (folder / name).is_file())}


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts) or path.name.endswith(PARTIAL)


def _top(name: str) -> str:
    first, mark, _ = name.partition("/")
    return f"{first}/" if mark else first


def _listed(folder: Path, name: str) -> Listed:
    path = folder / name
    if not path.is_file():
        raise DiptychError(f"{path} is missing; make {folder} again")
    return Listed(name, path, path.stat().st_size, sha256(path))


def sha256(path: Path) -> str:
    """The hash by which hubs name large files."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_oid(path: Path) -> str:
    """The hash by which git names a small file."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def blake2b(path: Path) -> str:
    """The hash in our own lists."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _notes(files: tuple[Listed, ...]) -> Iterator[str]:
    """What to know before others read the files."""
    naming = []
    for f in files:
        if f.place.suffix in TEXTS and f.size < LARGE and (match := PLACES.search(f.place.read_text("utf-8", errors="replace"))):
            naming.append(f"{f.name} ({match[0]})")
    if naming:
        yield f"these files name places on this machine: {', '.join(naming)}"
    card = next((f.place for f in files if f.name == "README.md"), None)
    if card is None:
        yield "there is no card: `diptych card` writes one"
    elif re.search("^license: other$", card.read_text("utf-8"), re.MULTILINE):
        yield "its licence is not stated: `diptych card DIRECTORY --licence NAME` states it"
