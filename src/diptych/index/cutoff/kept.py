"""What a model makes of a background, kept in the user's cache: the next index by the same model computes nothing."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

import numpy as np

from diptych.core.capabilities import Model
from diptych.core.errors import DiptychError
from diptych.core.files import write_atomically
from diptych.data.storage.cache import cache_directory, size_limit
from diptych.index.stamp import stamp_of

VERSION = 2  # of what is computed: another one makes it anew
Made = TypeVar("Made")


def kept(
    model: Model,
    about: str,
    make: Callable[[], Made],
    arrays: Callable[[Made], Mapping[str, np.ndarray]],
    of_arrays: Callable[[Mapping[str, np.ndarray]], Made],
) -> Made:
    """What ``make`` returns, from the cache if the same model has made the same before.

    about: all that it depends on apart from the model, whose weights (``key``), preprocessing and tokenizer (its vectors of the
    probes) are part of the name. A model without a key, or a cache of size 0: made each time.
    """
    path = _place(model, about)
    if path is None:
        return make()
    try:
        with np.load(path, allow_pickle=False) as held:
            return of_arrays(held)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, DiptychError):
        pass  # not there, or damaged
    made = make()

    def write(file: Path) -> None:
        """All arrays, as one .npz."""
        with file.open("wb") as opened:
            np.savez(opened, **arrays(made))  # type: ignore[arg-type]

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, write)
    except OSError:
        pass  # no room, or not ours: the next index computes it again
    return made


def _place(model: Model, about: str) -> Path | None:
    key = getattr(model, "key", None)
    if key is None or size_limit() == 0:
        return None
    probes = stamp_of(model, model.name)["hash"] if "embed_image" in model.capabilities else ""
    digest = blake2b(repr((VERSION, str(key), probes, about)).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return cache_directory() / "cutoff" / f"{digest}.npz"
