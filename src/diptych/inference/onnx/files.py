"""The directory of an ONNX export: what is in it, and the hashes by which it is verified. Nothing here imports torch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from diptych.core.errors import DiptychError
from diptych.core.files import check_format, read_json

MANIFEST = "diptych-onnx.json"
IMAGE, TEXT = "image.onnx", "text.onnx"
PREPROCESSING, TOKENIZER = "preprocessing.json", "tokenizer.json"
CERTIFICATE, CARD = "certificate.json", "README.md"
FORMAT = 1
PRECISIONS = ("fp32", "fp16", "int8")
UNHASHED = (MANIFEST, CERTIFICATE, CARD)  # the manifest holds the hashes of the others, and the certificate that of the manifest


def is_onnx(path: str | Path) -> bool:
    """Whether a path is the directory of an ONNX export."""
    return (Path(path) / MANIFEST).is_file()


def digest(path: Path) -> str:
    """A hash of a file."""
    result = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while part := file.read(1 << 22):
            result.update(part)
    return result.hexdigest()


def hashes(folder: Path) -> dict[str, str]:
    """The hash of each file that a model is made of, by name."""
    return {p.name: digest(p) for p in sorted(folder.iterdir()) if p.is_file() and p.name not in UNHASHED}


def key_of(source: str | None, precision: str, files: dict[str, str]) -> str:
    """Names weights and settings: the key of the model that was exported, the precision, and a hash of all files."""
    total = hashlib.blake2b(repr(sorted(files.items())).encode(), digest_size=8).hexdigest()
    return "-".join([*([source] if source else []), precision, total])


def read_manifest(folder: Path) -> dict[str, Any]:
    """What an export says about itself. DiptychError if it cannot be read or was written by a newer version."""
    try:
        manifest: dict[str, Any] = read_json(folder / MANIFEST)
        check_format(manifest.get("format"), FORMAT, str(folder / MANIFEST))
        _ = manifest["files"], manifest["precision"], manifest["width"], manifest["key"]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DiptychError(f"{folder / MANIFEST}: cannot be read ({error!r}); export the model again") from None
    return manifest


def verified_files(folder: Path) -> dict[str, Any]:
    """The manifest of a directory in which every file is the one that was exported. DiptychError for a changed or missing file."""
    manifest = read_manifest(folder)
    found, written = hashes(folder), manifest["files"]
    changed = [name for name in written if found.get(name) != written[name]]
    if changed:
        state = "has changed since" if changed[0] in found else "is missing; it was there when"
        raise DiptychError(f"{folder / changed[0]} {state} it was exported; export the model again")
    return manifest


def verified(folder: Path) -> dict[str, Any]:
    """The manifest of a directory that is as it was exported and has passed its certificate. DiptychError otherwise, or if the
    certificate is of another export.
    """
    manifest = verified_files(folder)
    check = f"`diptych export {folder} --check` makes a new one"
    try:
        certificate = read_json(folder / CERTIFICATE)
        passed, of = certificate["passed"], certificate["manifest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DiptychError(f"{folder}: no certificate ({error!r}); {check}") from None
    if of != digest(folder / MANIFEST):
        raise DiptychError(f"{folder}: the certificate is of another {MANIFEST}; {check}")
    if passed is not True:
        first = next(iter(certificate.get("failures") or ["no reason is recorded"]))
        raise DiptychError(f"{folder}: its certificate was refused ({first}); export the model again")
    return manifest
