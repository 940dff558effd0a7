"""``fewer:RUN?tome=36``, ``fewer:RUN?scan=16``, ``fewer:RUN?keep=0.5&after=2``: a trained run that reads pictures with fewer
tokens.

Everywhere that a model is named: evaluation, captions, chat. The weights are those of the run; nothing is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import parse_qsl, urlencode

from diptych.core.capabilities import Model
from diptych.core.errors import DiptychError, nearest

SCHEME = "fewer:"


@dataclass(frozen=True)
class Fewer:
    """What is left out, and where. None: nothing there.

    tome: patches that are left behind the tower, which merges the others in equal shares in its blocks; merge: instead, how many go
    in each block (``adapters.tome``). scan: patches that the language model is given, chosen by the tower's attention, and window:
    the side of the windows of its local scan (``vision.scanning``). keep: the share of the image tokens that is left in the
    language model behind its first ``after`` layers; None: half of the layers (``language.pruning``).
    """

    tome: int | None = None
    merge: int | None = None
    scan: int | None = None
    window: int | None = None
    keep: float | None = None
    after: int | None = None


def fewer_of(query: str, where: str) -> Fewer:
    """Settings from ``scan=16&keep=0.5`` (or with commas). DiptychError for one that is unknown, wrong, or alone without effect."""
    given = parse_qsl(query.replace(",", "&"), keep_blank_values=True)
    known = [f.name for f in fields(Fewer)]
    values: dict[str, Any] = {}
    for name, text in given:
        if name not in known:
            raise DiptychError(f"'{where}': unknown setting '{name}'{nearest(name, known)}; known: {', '.join(known)}")
        try:
            values[name] = float(text) if name == "keep" else int(text)
        except ValueError:
            raise DiptychError(f"'{where}': {name} must be a number, not '{text}'") from None
        if not (0 < values[name] <= 1 if name == "keep" else values[name] >= 1):
            wanted = "above 0 and at most 1" if name == "keep" else "a whole number from 1 on"
            raise DiptychError(f"'{where}': {name} must be {wanted}, not {text}")
    result = Fewer(**values)
    if result.tome is not None and result.merge is not None:
        raise DiptychError(f"'{where}': tome and merge both set how many tokens the tower merges; choose one")
    for name, needs in (("window", "scan"), ("after", "keep")):
        if getattr(result, name) is not None and getattr(result, needs) is None:
            raise DiptychError(f"'{where}': {name} has no effect without {needs}")
    if result == Fewer():
        raise DiptychError(f"'{where}': nothing is left out; set tome=, merge=, scan= or keep=, as in {SCHEME}runs/llava?keep=0.5")
    return result


def split_address(address: str) -> tuple[str, Fewer]:
    """The address of the run, and the settings. DiptychError for wrong ones."""
    place, _, query = address.removeprefix(SCHEME).partition("?")
    if not place:
        raise DiptychError(f"'{address}' has no run; expected {SCHEME}RUN?keep=0.5")
    return place, fewer_of(query, address)


def address_of(model: str, fewer: str | None) -> str:
    """A model's address with the settings of an option ``--fewer``; without them as it is."""
    if fewer is None:
        return model
    fewer_of(fewer, fewer)
    return f"{SCHEME}{model}?{fewer.replace(',', '&')}"


def open_fewer(address: str, load: Callable[[str, str], Model], device: str) -> Model:
    """The run at ``fewer:RUN?…``, changed in place. DiptychError if it is no run, or has no part that could leave tokens out."""
    place, fewer = split_address(address)
    model: Any = load(place, device)
    vlm = getattr(model, "model", None)
    if vlm is None or not hasattr(vlm, "parts"):
        raise DiptychError(f"{address}: {place} is not a run of ours; fewer tokens need its parts")
    apply(vlm, fewer, address)
    words = {f.name: v for f in fields(fewer) if (v := getattr(fewer, f.name)) is not None}
    model.name = f"{model.name} ({', '.join(f'{k} {v:g}' for k, v in words.items())})"
    model.key = None if model.key is None else f"{model.key}-{urlencode(words)}"
    model.refreshed()
    return model  # type: ignore[no-any-return]


def apply(vlm: Any, fewer: Fewer, where: str) -> None:
    """Let the parts of a model leave tokens out from now on."""
    from diptych.models.adapters.tome import install
    from diptych.models.language.pruning import Pruning, half
    from diptych.models.vision.scanning import Scan

    parts = vlm.parts
    if "vision" not in parts:
        raise DiptychError(f"{where}: the model has no part 'vision'")
    connector = parts["connector"] if "connector" in parts else None
    if fewer.tome is not None or fewer.merge is not None:
        if connector is not None and not connector.unplaced:
            raise DiptychError(
                f"{where}: the connector ({type(connector).__name__}) reads a square of patches; merged ones form none"
            )
        install(parts["vision"], where, fewer.merge, fewer.tome)
        left = int(parts["vision"].tokens)
        if connector is not None:
            connector.placed = False
            if connector.token_wise or (connector.at_most and connector.tokens > left):
                connector.tokens = left
    try:
        if fewer.scan is not None:
            Scan(parts["vision"], connector, fewer.scan, fewer.window)
        if fewer.keep is not None:
            lm = parts["lm"] if "lm" in parts else None
            if lm is None or lm.gated or connector is None:
                raise DiptychError("keep: it leaves image tokens out among the words of a language model, and there are none")
            lm.lm.pruning = Pruning(lm.lm, fewer.keep, half(lm.lm) if fewer.after is None else fewer.after)
            lm.__dict__.pop("reads_both", None)
    except DiptychError as error:
        raise DiptychError(f"{where}: {error}") from None
