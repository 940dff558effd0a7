"""The index and the models of a server by their addresses. An index and ONNX exports are opened without torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from diptych.core.capabilities import Model
from diptych.core.errors import DiptychError
from diptych.data.storage.cache import cache_directory
from diptych.index.index import INFO, Index
from diptych.index.stamp import check_stamp
from diptych.index.updating.scan import absolute

DEFAULT = "conse"  # for pictures without a model: photographs, from installed packages
BOTH = {"embed_image", "embed_text"}
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Opened:
    """What a server serves. search: the name of the model of the index."""

    index: Index | None
    models: dict[str, Model]
    search: str | None


def opened(index: str | None, models: Sequence[str], device: str = "auto", progress: Progress | None = None) -> Opened:
    """Opens an index, or makes one of a folder in the user's cache, and the models.

    index: a directory that ``diptych index`` made; or data, such as a folder: its index lies in the cache and is brought up to
    date. models: addresses; the model of the index is opened in any case. progress: of indexing, done and of how many. Raises
    DiptychError for what cannot be opened, and for an index by a model that is not there.
    """
    if index is None and not models:
        raise DiptychError("serve: nothing to serve; give an index, a folder of pictures, or --model RUN")
    named: dict[str, Model] = {}
    addresses: dict[str, str] = {}
    for address in models:
        _add(named, addresses, address, device)
    if index is None:
        return Opened(None, named, None)
    if (Path(index) / INFO).is_file():
        held = Index.open(index)
        search = _of(held, named) or _add(named, addresses, _known(held), device)
        held.check(named[search], addresses[search])
        return Opened(held, named, search)
    able = next((name for name, model in named.items() if model.capabilities >= BOTH), None)
    search = able or _add(named, addresses, DEFAULT, device)
    address = absolute(index)
    place = cached(address, addresses[search])
    there = (place / INFO).is_file()
    held = Index.open(place) if there else Index.create(place, address, named[search], addresses[search])
    try:
        held.update(named[search], progress)
    except BaseException:
        held.close()
        raise
    return Opened(held, named, search)


def cached(address: str, model: str) -> Path:
    """Where the index of data by a model lies, for data that was served without an index of its own."""
    digest = blake2b(f"{address}\n{absolute_model(model)}".encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()
    stem = re.sub(r"[^A-Za-z0-9]+", "-", Path(address.partition("?")[0]).name)[:40].strip("-") or "pictures"
    return cache_directory() / "indexes" / f"{stem}-{digest}.index"


def absolute_model(address: str) -> str:
    """The same address from any directory."""
    return str(Path(address).resolve()) if Path(address).exists() else address


def name_of(model: Model) -> str:
    """The name under which a model is served: the last part of its own, without the place that it lies in."""
    return re.split(r"[/\\:]", model.name.rstrip("/"))[-1] or "model"


def _add(named: dict[str, Model], addresses: dict[str, str], address: str, device: str) -> str:
    """Opens a model under a name of its own."""
    from diptych.inference.onnx.open import open_model

    model = open_model(address, device)
    first = name_of(model)
    name, k = first, 2
    while name in named:
        name, k = f"{first}-{k}", k + 1
    named[name], addresses[name] = model, address
    return name


def _of(index: Index, named: dict[str, Model]) -> str | None:
    """The model that an index is by, if it is one of these."""
    for name, model in named.items():
        if "embed_image" in model.capabilities:
            try:
                check_stamp(index.info["stamp"], model, str(index.path))
            except DiptychError:
                continue
            return name
    return None


def _known(index: Index) -> str:
    address: str = index.info["stamp"]["model"]
    if ("/" in address or "\\" in address) and ":" not in address and not Path(address.partition("?")[0]).exists():
        raise DiptychError(f"{index.path}: its vectors are by {address}, which is not there; give --model with its new place")
    return address
