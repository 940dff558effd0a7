"""Writing files so that a crash or a full disk leaves the old one or the new one, never half of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from diptych.core.errors import DiptychError

Content = TypeVar("Content")


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """``write(temporary path)``, then rename. Works for a file or, if ``write`` makes one, a directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        if path.is_dir() and temporary.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # of a full disk, Python does not say which file had no room
            error.filename = str(path)
        raise
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Writes data as JSON, atomically."""
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file, atomically."""
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_json_or(path: Path, default: Content) -> Content:
    """The content of a JSON file, or ``default`` if there is no file. Raises DiptychError if it is not valid JSON or not of the
    default's type.
    """
    if not path.is_file():
        return default
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise DiptychError(f"{path} could not be read ({error})") from None
    if not isinstance(content, type(default)):
        raise DiptychError(f"{path} could not be read (expected {type(default).__name__}, got {type(content).__name__})")
    return content


def append_jsonl(path: Path, row: dict[str, Any]) -> None:
    """Appends a row to a JSONL file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes rows as a JSONL file, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file, none if there is no file; a last line without its line end, cut off by a crash, is left out.

    Raises DiptychError for any other line that is not JSON.
    """
    lines = path.read_bytes().split(b"\n") if path.is_file() else []  # not splitlines: texts hold U+2028
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise DiptychError(f"{path}, line {number} is not JSON ({error}); repair or delete the file") from None
    return rows


def check_format(found: object, known: int, where: str) -> None:
    """DiptychError if a file has a format number above the one that this program knows."""
    if not isinstance(found, int) or found > known:
        raise DiptychError(
            f"{where}: written by a newer Diptych (format {found}; this one reads up to {known}); upgrade with: pip install "
            "-U diptych"
        )
