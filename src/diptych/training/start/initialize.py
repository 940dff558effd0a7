"""``weights: RUN | hf:PATH`` of a recipe: a run that starts from trained weights, ours or those of a class that ``diptych.interop``
supports.

The tokenizer is taken too, since word vectors mean nothing without it. A part either fits as a whole or is refused with the options
to set; parts without a counterpart start fresh, and are reported. ``RUN?parts=vision`` takes that part alone, and the tokenizer
only with a part that reads text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl

import torch
from torch import Tensor, nn

from diptych.config.recipe import PARTS, Recipe, load_recipe
from diptych.core.errors import DiptychError, nearest
from diptych.core.files import read_json
from diptych.data.text import Tokenizer, tokenizer_class
from diptych.interop import families_of
from diptych.interop.base import Geometry, State, state_of, to_ours
from diptych.interop.families.dual import DualEncoder
from diptych.interop.probe import differences
from diptych.interop.tokenizer import adopt
from diptych.models.pretrained.hub import fetch, place, statistics_of
from diptych.models.pretrained.tokenizer import kept_in
from diptych.models.vlm import VLM
from diptych.training.checkpoint import Checkpoint, checkpoint_key, find_checkpoint

SCALE = ("logit_scale", "logit_bias")
SIDES = {"image": "vision", "text": "text"}


@dataclass
class Started:
    """What a run started from: groups of weights are parts, projections and objectives."""

    address: str
    key: str  # a hash of the weights
    loaded: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lists = (("loaded", self.loaded), ("fresh", self.fresh), ("not used", self.unused))
        return "; ".join(
            [f"weights: {self.address}", *(f"{what}: {', '.join(names)}" for what, names in lists if names), *self.notes]
        )

    def plain(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


class Start(Protocol):
    """Where weights come from."""

    address: str

    def tokenizer(self, max_length: int) -> Tokenizer | None:
        """The tokenizer that belongs to these weights; None if there is none of ours. max_length: in tokens."""
        ...

    def kept(self) -> list[int] | None:
        """The words that a language model's trimmed vocabulary kept."""

    def load(self, recipe: Recipe, model: VLM, objectives: nn.ModuleDict) -> Started:
        """Puts the weights into a model and its objectives. Returns what was loaded and what was not."""
        ...


def open_start(address: str) -> Start:
    """Where weights come from, by its address. DiptychError if there is nothing there."""
    place, _, query = address.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    only = options.pop("parts", None)
    if options:
        raise DiptychError(f"weights: {place} has no option '{next(iter(options))}'; expected parts, as in {place}?parts=vision")
    for name in only.split(",") if only is not None else ():
        if name not in PARTS:
            raise DiptychError(f"weights: {address}: there is no part '{name}'{nearest(name, PARTS)}")
    if not place.startswith("hf:"):
        return RunStart(place, only.split(",") if only else None)
    if only:
        raise DiptychError(f"weights: {address}: parts are taken from a run; a tower by parts.vision={{kind: hf, from: '{place}'}}")
    from diptych.training.start.exported import ExportedStart, is_export

    directory = place.removeprefix("hf:")
    return ExportedStart(place, directory) if is_export(directory) else HubStart(place)


class RunStart:
    """A run of ours (its last checkpoint, or ``RUN/checkpoints/best``), averaged where it keeps an average. only: these parts and
    nothing else.
    """

    def __init__(self, address: str, only: list[str] | None = None):
        path = Path(address).expanduser()
        inside = path.parent.name == "checkpoints"
        self.address, self.run = address, path.parent.parent if inside else path
        if not (self.run / "recipe.yaml").is_file():
            raise DiptychError(f"weights: no run at '{address}'; give a run directory, or hf:PATH for a checkpoint of transformers")
        self.checkpoint = find_checkpoint(self.run / "checkpoints", path.name if inside else "last")
        self.only = only
        self.recipe = load_recipe(str(self.run / "recipe.yaml"))

    def tokenizer(self, max_length: int) -> Tokenizer | None:
        """The run's tokenizer; None: a part is taken that reads no text."""
        own = tokenizer_class(self.recipe.data.tokenizer.kind) if self._reads else None
        return own(self.run / "tokenizer.json", max_length) if own else None

    def kept(self) -> list[int] | None:
        """Ids that a trimmed vocabulary kept; None: it was not trimmed."""
        own = self.recipe.data.tokenizer.kind == "lm" and self._reads
        return kept_in(self.run / "tokenizer.json") if own else None

    @property
    def _reads(self) -> bool:
        """Whether a part is taken that reads token ids."""
        return self.only is None or not {"text", "lm", "decoder"}.isdisjoint(self.only)

    def load(self, recipe: Recipe, model: VLM, objectives: nn.ModuleDict) -> Started:
        """Put the run's weights into a model. DiptychError, with the options to set, for what does not fit."""
        saved = Checkpoint.load(self.checkpoint, restore_random=False)
        theirs = {**saved.model, **{f"objectives.{k}": v for k, v in saved.objectives.items()}}
        for name, value in saved.ema.items():
            theirs[name[2:] if name.startswith("0.") else f"objectives.{name[2:]}"] = value
        ours = state_of(model, objectives)
        started = Started(self.address, checkpoint_key(self.checkpoint))
        result: State = {}
        for name in groups(ours):
            if self.only is not None and name not in {f"parts.{part}" for part in self.only}:
                continue
            mine, there = _of(name, ours), _of(name, theirs)
            bare = {model.bare_name(k): k for k in mine if not model.adapter_owns(k)} if name.startswith("parts.") else {}
            if mine and {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in there.items()}:
                result |= there
            elif bare and {b: mine[k].shape for b, k in bare.items()} == {k: v.shape for k, v in there.items()}:
                result |= {bare[k]: v for k, v in there.items()}  # the adapter within the part starts fresh
            elif mine and there and not name.startswith("objectives."):
                self._refuse(name, mine, there, recipe, model)
            elif mine and there:  # an objective of another kind, in the same place: the scale of similarities goes on
                scale = {f"{name}.{key}" for key in SCALE}
                result |= {k: v for k, v in there.items() if k in scale and k in mine and mine[k].shape == v.shape}
        return put(result, model, objectives, started, groups(theirs))

    def _refuse(self, name: str, mine: State, there: State, recipe: Recipe, model: VLM) -> None:
        odd = next(k for k in sorted(set(mine) | set(there)) if k not in mine or k not in there or mine[k].shape != there[k].shape)
        here, wanted = (str(tuple(x[odd].shape)) if odd in x else "absent" for x in (mine, there))
        settings = _differences(recipe, self.recipe, name, model.image_size, read_json(self.run / "model.json")["image_size"])
        remedy = " ".join(f"--set {k}={_word(v)}" for k, v in settings.items()) or "the options of its recipe.yaml"
        raise DiptychError(
            f"weights: {self.address} does not fit {name}: {odd} is {here} here and {wanted} there; it fits with {remedy}"
        )


def _differences(recipe: Recipe, other: Recipe, group: str, size: int, other_size: int) -> dict[str, Any]:
    """The options that differ in ``other`` and may change the shapes of a group."""
    result: dict[str, Any] = {}
    if size != other_size:
        result["data.image_size"] = other_size
    if recipe.size != other.size:
        result["size"] = other.size
    if recipe.embed_dim != other.embed_dim:
        result["embed_dim"] = other.embed_dim
    if recipe.data.tokenizer.max_length != other.data.tokenizer.max_length:
        result["data.tokenizer.max_length"] = other.data.tokenizer.max_length
    name = group.removeprefix("parts.")
    for n in {**recipe.adapters, **other.adapters}:
        ours, of_run = ({"kind": a.kind, **a.options} if (a := r.adapters.get(n)) else None for r in (recipe, other))
        part = (other.adapters.get(n) or recipe.adapters[n]).part or n
        if ours != of_run and group in (f"adapters.{n}", f"parts.{part}"):
            result[f"adapters.{n}"] = of_run
    if name in recipe.parts and name in other.parts:
        mine, theirs = ({"kind": p.kind, **p.options} for p in (recipe.parts[name], other.parts[name]))
        result |= {f"parts.{name}.{k}": theirs.get(k) for k in {**theirs, **mine} if mine.get(k) != theirs.get(k)}
    return result


class HubStart:
    """A checkpoint of transformers, of a class that our parts can reproduce."""

    def __init__(self, address: str):
        from transformers import AutoConfig

        self.address, self.name = address, place(address)
        self.config = fetch(AutoConfig, self.name)
        known = {f.name: f for f in families_of("transformers") if f.starts}
        if self.config.model_type not in known:
            raise DiptychError(f"weights: {address} is of type '{self.config.model_type}'; a run can start from {', '.join(known)}")
        self.family = known[self.config.model_type]

    @cached_property
    def _adopted(self) -> tuple[Tokenizer, list[int | None]] | str:
        from transformers import AutoTokenizer

        try:
            return adopt(fetch(AutoTokenizer, self.name))
        except DiptychError as error:
            return f"its tokenizer cannot be used, and so its word vectors cannot either: {error}"

    @property
    def unreadable(self) -> str:
        """Why their tokenizer cannot be taken over, and with it their word vectors; "" if it can."""
        return self._adopted if isinstance(self._adopted, str) else ""

    def tokenizer(self, max_length: int) -> Tokenizer | None:
        """Their tokenizer, if it can be taken over."""
        if isinstance(self._adopted, str):
            return None
        tokenizer = self._adopted[0]
        tokenizer.max_length = max_length
        return tokenizer

    def kept(self) -> list[int] | None:
        """None, since nothing is trimmed."""
        return None

    def load(self, recipe: Recipe, model: VLM, objectives: nn.ModuleDict) -> Started:
        """Put their weights into a model. DiptychError, with the options to set, for what does not fit."""
        from transformers import AutoModel

        self._check(model)
        given = fetch(AutoModel, self.name).float().eval()
        theirs: State = given.state_dict()
        started = Started(self.address, digest_of(theirs))
        state = state_of(model, objectives)
        names_here = {model.bare_name(k): k for k in state if not model.adapter_owns(k)}
        ours = {bare: state[k] for bare, k in names_here.items()}  # an adapter within a part starts fresh
        entries = [e for e in self.family.entries(model, objectives) if all(n in ours for n in e.ours)]
        if "vision" in model.parts:
            theirs = self._repainted(theirs, {n: t for e in entries for n, t in zip(e.ours, e.theirs, strict=False)})
        result = to_ours(theirs, entries, {k: v.shape for k, v in ours.items()})
        words = "parts.text.embedding.weight"
        if words in result:
            vectors = result.pop(words)
            if isinstance(self._adopted, str) or recipe.data.tokenizer.kind != "bpe":
                started.notes.append(self._adopted if isinstance(self._adopted, str) else "its tokenizer is not used")
                result[words] = ours[words]
            else:
                order = self._adopted[1]
                mine = [i for i, there in enumerate(order) if there is not None]
                result[words] = ours[words].clone()
                result[words][mine] = vectors[[i for i in order if i is not None]]
        used = {n for e in entries for n in e.theirs}
        result = {names_here[k]: v for k, v in result.items()}
        put(result, model, objectives, started, sorted({n.split(".")[0] for n in theirs if n not in used}))
        started.notes += differences(self.name, given, model, self._comparable(model, started, reads=not started.notes))
        return started

    def _comparable(self, model: VLM, started: Started, reads: bool) -> set[str]:
        """The sides that have only weights of theirs, up to the shared space. reads: whether its words were taken too."""
        if not isinstance(self.family, DualEncoder) or "parts.space" not in started.loaded or model.adapters:
            return set()
        return {side for side, part in SIDES.items() if f"parts.{part}" in started.loaded and (reads or side == "image")}

    def _check(self, model: VLM) -> None:
        """Raises DiptychError with every option that must be set."""
        wanted = self.family.options(self.config)
        has: dict[str, Any] = {"data.image_size": model.image_size, "embed_dim": model.embed_dim}
        wrong = {m.set.split(".")[1] for m in self.family.structure(model)}
        for name in ("vision", "text"):
            if name not in model.parts:
                continue
            part, kind = model.part(name), {} if name in wrong else {"kind": self.family.kind or self.family.name}
            transformer = getattr(part, "transformer", None)
            sizes = asdict(Geometry.of(transformer)) if transformer is not None else {}
            own = {k: getattr(part, k, None) for k in ("patch", "frames", "tubelet")} | {"bare": getattr(transformer, "bare", None)}
            has |= {f"parts.{name}.{k}": v for k, v in {**sizes, **own, **kind}.items()}
        if "text" in model.parts:
            has["data.tokenizer.max_length"] = model.tokenizer.max_length + getattr(model.part("text"), "places_taken", 0)
        both = {"vision", "text"} <= set(model.parts)
        asked = [
            k
            for k in wanted
            if (k.split(".")[1] in model.parts if k.startswith("parts.") else k in has and (both or k != "embed_dim"))
        ]
        odd = {
            k: wanted[k]
            for k in asked
            if has.get(k) != wanted[k] and not (k.startswith("data.image") and "vision" not in model.parts)
        }
        if odd:
            first, value = next(iter(odd.items()))
            raise DiptychError(
                f"weights: {self.address} does not fit: {first} is {has.get(first, 'another')} here and {value} there; "
                f"it fits with {' '.join(f'--set {k}={_word(v)}' for k, v in odd.items())}"
            )

    def _repainted(self, theirs: State, names: dict[str, str]) -> State:
        """Weights with the stem scaled and shifted, so that our pixels in [−1, 1] give what pixels normalised by the checkpoint's
        mean and deviation gave.
        """
        mean, std = (torch.tensor(v) for v in statistics_of(self.name))
        name = names["parts.vision.stem.weight"]
        stem = theirs[name]
        mean, std = (v.view(1, 3, *[1] * (stem.ndim - 2)) for v in (mean, std))  # of a clip's tubelets it has another dimension
        shift = (stem * ((0.5 - mean) / std)).flatten(1).sum(1)
        return self.family.shift({**theirs, name: stem * (0.5 / std)}, shift)


def put(found: State, model: VLM, objectives: nn.ModuleDict, started: Started, theirs: Iterable[str]) -> Started:
    """Load what was found, and list the rest."""
    model.load_state_dict({k: v for k, v in found.items() if not k.startswith("objectives.")}, strict=False)
    model.note_restarted(found)
    for name, adapter in model.adapters.items():
        own = (f"adapters.{name}.", f"parts.{model.part_of(name)}.")
        if not any(model.adapter_owns(k) for k in found if k.startswith(own)):
            adapter.restart()  # type: ignore[operator]
    objectives.load_state_dict(
        {k.removeprefix("objectives."): v for k, v in found.items() if k.startswith("objectives.")}, strict=False
    )
    started.loaded = groups(found)
    known = {*started.loaded, "teachers"}  # which begin as the model does, or are models of their own
    started.fresh = [name for name in groups(state_of(model, objectives)) if name not in known]
    started.unused = [name for name in theirs if name not in started.loaded]
    if not started.loaded:
        raise DiptychError(f"weights: this recipe can use nothing in {started.address}")
    return started


def groups(names: Iterable[str]) -> list[str]:
    """Parts, projections and objectives, in order."""
    inner = ("parts.", "objectives.", "adapters.")
    return list(dict.fromkeys(".".join(n.split(".")[: 2 if n.startswith(inner) else 1]) for n in names))


def _of(group: str, state: State) -> State:
    return {k: v for k, v in state.items() if k.startswith(f"{group}.")}


def _word(value: Any) -> str:
    text = {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))
    return f'"{text}"' if " " in text else text


def digest_of(state: dict[str, Tensor]) -> str:
    """A hash of weights."""
    result = hashlib.blake2b(digest_size=12)
    for name, value in sorted(state.items()):
        result.update(name.encode() + value.contiguous().numpy().tobytes())
    return result.hexdigest()
