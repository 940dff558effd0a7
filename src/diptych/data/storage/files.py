"""Files by URL: plain local paths, and any protocol of fsspec (``memory://``, ``s3://``, ``https://`` …)."""

from __future__ import annotations

import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from typing import Any

from diptych.core.errors import DiptychError
from diptych.data.storage.patience import opened, patiently

_PACKERS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}  # by a file's first bytes


def is_local(url: str) -> bool:
    """Whether an address is a path on this machine."""
    return "://" not in url


def normal(url: str) -> str:
    """A local path without ``file://`` and ``~``; any other URL as it is."""
    url = url.removeprefix("file://")
    return os.path.expanduser(url) if is_local(url) else url


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system for ``url``, and the path in it."""
    from fsspec.core import url_to_fs

    try:
        found: tuple[Any, str] = url_to_fs(url)
        return found
    except (ImportError, ValueError) as error:  # no such protocol, or its package is not installed
        raise DiptychError(f"{url}: {error}") from error


def _halves(url: str) -> tuple[str, str]:
    protocol, mark, path = url.rpartition("://")
    return protocol + mark, path


def parent(url: str) -> str:
    """The directory of a file."""
    protocol, path = _halves(url)
    return protocol + (posixpath.dirname(path) or ("" if protocol else "."))


def name(url: str) -> str:
    """The last part of an address."""
    return posixpath.basename(url.rstrip("/"))


def join(directory: str, path: str) -> str:
    """``path`` relative to ``directory``; a URL or an absolute local path is returned as it is. Backslashes count as slashes
    (``slashed``).
    """
    path = slashed(path, directory)
    if not is_local(path) or (is_local(directory) and os.path.isabs(path)):
        return normal(path)
    protocol, base = _halves(directory)
    joined = posixpath.normpath(f"{base}/{path}" if base else path)
    return protocol + joined


def slashed(path: str, directory: str) -> str:
    """A path that Windows wrote, ``img\\\\a.png``, with slashes; as it is, if a file in the local directory has it as its name."""
    if "\\" not in path or (is_local(directory) and os.path.exists(os.path.join(directory, path))):
        return path
    return path.replace("\\", "/")


def exists(url: str) -> bool:
    """Whether there is a file or directory."""
    if is_local(url):
        return os.path.exists(url)
    fs, path = filesystem(url)
    return bool(patiently(lambda: fs.exists(path)))


def is_directory(url: str) -> bool:
    """Whether there is a directory."""
    if is_local(url):
        return os.path.isdir(url)
    fs, path = filesystem(url)
    return bool(patiently(lambda: fs.isdir(path)))


def open_file(url: str) -> Any:
    """A seekable binary file. Raises DiptychError if it does not exist."""
    try:
        here = url if is_local(url) else _copy(url)
        if here:
            return open(here, "rb")
        fs, path = filesystem(url)
        return opened(fs, path)
    except FileNotFoundError as error:
        raise DiptychError(f"{url}: there is no such file") from error
    except OSError as error:
        raise DiptychError(f"{url}: cannot be opened: {error}") from error


def read(url: str, start: int = 0, length: int | None = None) -> bytes:
    """``length`` bytes from ``start``, or all. Raises ``OSError``."""
    here = url if is_local(url) else _copy(url)
    if here:
        with open(here, "rb") as file:
            file.seek(start)
            return file.read(-1 if length is None else length)
    fs, path = filesystem(url)
    if start == 0 and length is None:
        return patiently(lambda: bytes(fs.cat_file(path)))
    return patiently(lambda: bytes(fs.cat_file(path, start=start, end=None if length is None else start + length)))


def _copy(url: str) -> str:
    """Where the cache has a copy of a remote file; "" if there is none. Files in this process's memory need none."""
    from diptych.data.storage import cache

    return "" if url.startswith("memory://") else cache.local_copy(url)


def read_text(url: str) -> str:
    """A text file in UTF-8, or in UTF-16 with its mark; the mark is dropped."""
    with open_file(url) as file:
        data: bytes = file.read()
    if packer := packer_of(data):
        raise DiptychError(f"{url}: compressed by {packer}: unpack it first, `{packer} -d FILE`")
    if data.startswith(b"PK\x03\x04"):
        raise DiptychError(f"{url}: a spreadsheet (.xlsx, .ods) or a zip archive: save the sheet as .csv, or unpack the archive")
    try:
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DiptychError(f"{url}, line {line}: not UTF-8 text; save the file as UTF-8") from error


def packer_of(data: bytes) -> str:
    """The program that compressed a file, from its first bytes; "" if it is not compressed."""
    return next((name for mark, name in _PACKERS.items() if data.startswith(mark)), "")


def find(directory: str) -> list[str]:
    """Paths of all files below ``directory``, relative to it, sorted; hidden ones left out."""
    fs, root = filesystem(directory)
    root = root.rstrip("/")
    paths = (path[len(root) + 1 :] for path in patiently(lambda: fs.find(root)))
    return sorted(p for p in paths if not any(part.startswith((".", "__MACOSX")) for part in p.split("/")))


def subfolders(directory: str) -> list[str]:
    """Names of the folders directly in a directory, sorted; hidden ones left out."""
    fs, root = filesystem(directory)
    result = (name(entry["name"]) for entry in patiently(lambda: fs.ls(root, detail=True)) if entry["type"] == "directory")
    return sorted(n for n in result if not n.startswith((".", "__MACOSX")))


def expand(pattern: str) -> list[str]:
    """URLs for a pattern with brace ranges (``{000..031}``, ``{a,b}``) and globs (``*``, ``[0-9]``), in order."""
    urls: list[str] = []
    for url in [pattern] if is_local(pattern) and os.path.exists(pattern) else braces(pattern):
        if not re.search(r"[*\[]", url) or (is_local(url) and os.path.exists(url)):
            urls.append(url)
        else:
            fs, path = filesystem(url)
            result = sorted(patiently(partial(fs.glob, path)))
            urls += result if is_local(url) else [fs.unstrip_protocol(f) for f in result]
    return list(dict.fromkeys(os.path.relpath(u) if is_local(u) and not os.path.isabs(pattern) else u for u in urls))


def matching(pattern: str) -> list[str]:
    """``expand``; DiptychError if there is none."""
    urls = expand(pattern)
    if not urls:
        raise DiptychError(f"{pattern}: no file has such a name")
    return urls


def places_of(url: str, path: str) -> list[str]:
    """Where a path that is given along with a file may lie: as seen from the file's directory, else from here."""
    return [join(parent(url), path), normal(path)]


def directory_of(url: str, images: str | None) -> str:
    """The directory of the images of a file: the one given, where it is found, else the file's own."""
    places = places_of(url, images) if images else [parent(url)]
    return next((p for p in places if is_directory(p)), places[0])


def braces(pattern: str) -> list[str]:
    """``a{00..02}`` → a00, a01, a02; ``{x,y}b`` → xb, yb; several pairs multiply."""
    match = re.search(r"\{([^{}]*(?:\.\.|,)[^{}]*)\}", pattern)
    if not match:
        return [pattern]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if span:
        first, last = int(span[1]), int(span[2])
        width = len(span[1]) if span[1].startswith("0") else 0
        choices = [str(n).zfill(width) for n in range(first, last + 1)]
    else:
        choices = match[1].split(",")
    return [rest for c in choices for rest in braces(pattern[: match.start()] + c + pattern[match.end() :])]


def relative(urls: list[str]) -> list[str]:
    """Names that distinguish ``urls``: each without the directory that all have in common."""
    paths = [_halves(url)[1] for url in urls]
    common = posixpath.commonpath([posixpath.dirname(path) for path in paths])
    return [posixpath.relpath(path, common or ".") for path in paths]


def prefixes(urls: list[str]) -> list[str]:
    """For each file the way to its directory from the one that all have in common, with a slash at its end; "" for files of
    one directory. Before paths that are relative to the files, it tells equal paths of unlike directories apart.
    """
    ways = [posixpath.dirname(path) for path in relative(urls)] if urls else []
    return [f"{way}/" if way else "" for way in ways]


def named(path: str, prefix: str, url: str) -> str:
    """The name of the item at ``path``, which stands in the file ``url``: the path as seen from the directory that files have in
    common. prefix: that file's, of ``prefixes``.
    """
    path = path.strip()
    if not is_local(path):
        return path
    return posixpath.normpath(path if is_local(url) and os.path.isabs(path) else prefix + path)


def stamps(urls: Iterable[str]) -> dict[str, str | None]:
    """For each file a text that changes when its content does; "" if not known; ``None`` if there is no such file."""
    result: dict[str, str | None] = {}
    remote: dict[str, list[str]] = defaultdict(list)
    web: tuple[Any, str] | None = None
    for url in urls:
        if is_local(url):
            result[url] = _local_stamp(url)
        elif url.startswith(("http://", "https://")):
            result[url] = ""  # web servers do not list files; a missing one is noticed when it is read
            web = web or filesystem(url)  # but a protocol that cannot be read is noticed now
        else:
            remote[parent(url)].append(url)
    for directory, members in remote.items():
        fs, path = filesystem(directory)
        try:
            entries = patiently(partial(fs.ls, path, detail=True))
            present = {posixpath.basename(e["name"]) for e in entries if e["type"] == "file"}
        except FileNotFoundError:
            present = set()
        result.update((url, "" if name(url) in present else None) for url in members)
    return result


def _local_stamp(path: str) -> str | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a null byte in the name
        return None
    return f"{os.path.abspath(path)}:{status.st_size}:{status.st_mtime_ns}" if os.path.isfile(path) else None
