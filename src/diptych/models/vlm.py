"""A model consists of the parts that its recipe names; what they provide forms a graph of encodings (``core.encodings``)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from diptych.config.recipe import PARTS, PartSpec, Recipe
from diptych.core.batch import Batch, Images, Videos
from diptych.core.encodings import Pass
from diptych.core.errors import DiptychError, nearest
from diptych.core.graph import Graph, Provider
from diptych.core.registry import check_options, resolve
from diptych.data.fields import kinds_of_fields
from diptych.models.adapters import build_adapter
from diptych.models.build import SIZES, Build
from diptych.models.connectors import CONNECTOR
from diptych.models.decoders.multimodal import DECODER
from diptych.models.fusion.cross import FUSION
from diptych.models.language.lm import LM
from diptych.models.layers.attention import Transformer
from diptych.models.layers.rotary import RotaryTransformer
from diptych.models.part import Part
from diptych.models.regions import GROUNDING, REGIONS
from diptych.models.space import SPACE
from diptych.models.teachers import Teacher
from diptych.models.text.towers import TEXT
from diptych.models.time import TIME
from diptych.models.vision.drawn import random_keep
from diptych.models.vision.features import Features, fits
from diptych.models.vision.quantizer import QUANTIZER
from diptych.models.vision.towers import VISION

KINDS: dict[str, dict[str, Any]] = {
    "vision": VISION,
    "time": TIME,
    "text": TEXT,
    "connector": CONNECTOR,
    "fusion": FUSION,
    "regions": REGIONS,
    "grounding": GROUNDING,
    "decoder": DECODER,
    "lm": LM,
    "quantizer": QUANTIZER,
    "space": SPACE,
}


class VLM(nn.Module):
    """Parts by name; ``model.encode(batch)`` gives the ``Pass`` that objectives and scorers work on."""

    def __init__(self, recipe: Recipe, build: Build):
        super().__init__()
        self.parts = nn.ModuleDict()
        self.patch_dropout = 0.0  # share of the image tokens left out of every training pass (FLIP); set by the stage
        self.features: Features | None = None  # of a tower that never changes, cached by image
        self.frozen: frozenset[str] = frozenset()
        self.image_size, self.own_fields = build.image_size, dict(recipe.data.fields)
        specs = {name: recipe.parts[name] for name in build_order(recipe.parts)}
        self.adapters = nn.ModuleDict()
        self.teachers = nn.ModuleDict()
        self.field_names = {name: spec.fields for name, spec in specs.items()}
        for name, spec in specs.items():
            adapters = {n: a for n, a in recipe.adapters.items() if (a.part or n) == name}
            build.adapted = bool(adapters)
            self._add(name, build_part(name, spec, build), build)
            for n, a in adapters.items():
                self.adapters[n] = build_adapter(n, a, build)
        if "space" not in specs and (kind := default_space(self.parts)):
            self._add("space", build_part("space", PartSpec(kind=kind), build), build)
        for name, part in self.parts.items():
            if isinstance(part, Part):
                build.where = f"parts.{name}"
                part.attach(build)
        for n, adapter in self.adapters.items():
            build.where = f"adapters.{n}"
            adapter.attach(build)  # type: ignore[operator]
        self.fixed = {name for name, spec in recipe.parts.items() if spec.frozen}
        for n, adapter in self.adapters.items():
            if adapter.freezes and _trains_base(recipe, self.part_of(n)):
                raise DiptychError(
                    f"adapters.{n}: the part's own weights are in 4 bits and cannot learn; train adapters.{n} without "
                    f"{self.part_of(n)}"
                )
        self.unchanging = self.fixed | {p for p in self.adapted if not _trains_base(recipe, p)}
        self.restarted: set[str] = set()  # frozen parts with weights that are not those of their package
        self.freeze(self.fixed)
        self.tokenizer = build.tokenizer
        self.licences = tuple(build.licences)
        self.embed_dim = int(self.parts["space"].width) if "space" in self.parts else build.embed_dim  # type: ignore[arg-type]
        self.graph = Graph(kinds_of_fields(recipe), recipe.encodings)
        for name, part in self.parts.items():
            self.graph.add(name, part, self.field_names.get(name))
        for n, adapter in self.adapters.items():
            self.graph.add(f"adapters.{n}", adapter, self.field_names.get(self.part_of(n)))

    def _add(self, name: str, part: nn.Module, build: Build) -> None:
        self.parts[name] = build.parts[name] = part
        own = part.own_tokenizer if isinstance(part, Part) else None
        build.tokenizer = build.tokenizer if own is None else own

    def freeze(self, names: Collection[str]) -> None:
        """Freeze these parts and adapters (``adapters.<name>``): no gradients, no optimizer state. Parts in which nothing learns
        are in evaluation mode.
        """
        for name, part in self.parts.items():
            part.requires_grad_(name not in names)
        for name, adapter in self.adapters.items():
            for p in adapter.own():  # type: ignore[operator]
                p.requires_grad_(f"adapters.{name}" not in names)
        learning = {
            part
            for name, adapter in self.adapters.items()
            if adapter.learns and f"adapters.{name}" not in names
            for part in self.parts_of(name)
        }
        self.frozen = frozenset(n for n in self.parts if n in names and n not in learning)
        for name, part in self.parts.items():
            part.train(self.training and name not in self.frozen)

    def part_of(self, adapter: str) -> str:
        """The part that an adapter is put into."""
        part = self.adapters[adapter].part
        return next(name for name, other in self.parts.items() if other is part)

    def parts_of(self, adapter: str) -> set[str]:
        """All parts that an adapter changes."""
        spans: Any = self.adapters[adapter].spans
        return {name for name, part in self.parts.items() if any(part is other for other in spans)}

    @property
    def adapted(self) -> set[str]:
        """Parts with adapters that learn."""
        return set().union(*(self.parts_of(name) for name, adapter in self.adapters.items() if adapter.learns))

    def train_only(self, names: Collection[str] | str) -> None:
        """Train these parts and adapters; ``all``: everything but frozen parts and parts that have an adapter. The maps into the
        shared space are heads, which always learn unless the recipe freezes them.
        """
        everything = {*self.parts, *(f"adapters.{n}" for n in self.adapters)}
        learning = everything - self.adapted if names == "all" else {"space", *names}
        self.freeze((everything - learning) | self.fixed)

    def train(self, mode: bool = True) -> VLM:
        """Training or evaluation mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        for name, part in self.parts.items():
            if name in self.frozen:
                part.eval()
            if isinstance(part, Part):
                part.prepare(mode)
        return self

    @property
    def constant(self) -> set[str]:
        """Parts that never change: frozen in every stage, and without adapters."""
        return self.fixed - self.adapted

    def remember_features(self, images: int) -> None:
        """Keep the tower's output for each image, if the tower is frozen and the output for this many images fits in memory."""
        tower: Any = self.parts["vision"] if "vision" in self.constant else None
        if tower is not None and fits(images, tower.extra + tower.tokens, tower.width):
            self.features = Features()

    def part(self, name: str) -> Any:
        """A part by name. DiptychError if the recipe has none."""
        if name not in self.parts:
            raise DiptychError(
                f"the recipe has no part '{name}', which its objectives or its score need; parts: {', '.join(self.parts)}"
            )
        return self.parts[name]

    def compute(self, provider: Provider, inputs: Sequence[Any]) -> Any:
        """What a provider makes of its inputs, without a graph if its part is frozen and nothing before it learns."""
        name = provider.part
        if name not in self.frozen or getattr(self.parts[name], "borrows", False):  # weights that belong to another part may learn
            return provider.method(*inputs)
        if torch.is_grad_enabled() and any(map(has_gradient, inputs)):
            return provider.method(*inputs)
        with torch.no_grad():
            first = inputs[0] if inputs else None
            if (
                name == "vision"
                and self.features is not None
                and type(first) is Images  # not in tiles
                and first.keep is None
                and first.hidden is None
            ):
                return self.features(first.pixels, lambda new: provider.method(Images(new)))
            return provider.method(*inputs)

    def teacher(self, name: str) -> Teacher:
        """A teacher by name. DiptychError if there is none."""
        if name not in self.teachers:
            raise DiptychError(f"there is no teacher '{name}'{nearest(name, self.teachers)}")
        return self.teachers[name]  # type: ignore[return-value]

    def add_teacher(self, name: str, teacher: Teacher) -> None:
        """Let objectives ask for a teacher's encodings."""
        self.teachers[name] = teacher
        self.graph.teachers[name] = teacher.graph

    def update_teachers(self, decay: float | None = None) -> None:
        """Averaged teachers follow the weights as they are now; ``decay`` 0 copies them."""
        for teacher in self.teachers.values():
            teacher.follow(self.parts, self.adapters, decay)  # type: ignore[operator]

    def set_training(self, patch_dropout: float, gradient_checkpointing: bool) -> None:
        """How a stage trains: the share of image tokens left out, and whether blocks are computed again in the backward pass."""
        self.patch_dropout = patch_dropout
        for module in self.modules():
            if isinstance(module, Transformer | RotaryTransformer):
                module.checkpointing = gradient_checkpointing
            elif isinstance(module, Part):
                module.set_checkpointing(gradient_checkpointing)

    def compile_parts(self, backend: str = "inductor") -> None:
        """``torch.compile`` on what every part computes in ``forward``, and on the transformers within parts that compute in other
        methods. A language model of transformers stays plain.
        """
        for part in self.parts.values():
            for module in part.modules():
                if module is part or isinstance(module, Transformer | RotaryTransformer):
                    module.compile(backend=backend)

    def encode(self, batch: Batch, wanted: Collection[str] = ()) -> Pass:
        """The pass over a batch. In training a stage's patch dropout is drawn here, anew for every image and every frame of a clip
        (FLIP, Li et al. 2023, §3).

        wanted: the encodings that will be asked for, as far as known.
        """
        if self.training and self.patch_dropout:
            images = {name: f for name, f in batch.fields.items() if isinstance(f, Images)}
            clips = {name: f for name, f in batch.fields.items() if isinstance(f, Videos)}
            batch = batch.with_(
                **{name: self._part_of(f) for name, f in images.items()},
                **{name: replace(f, frames=self._part_of(f.frames)) for name, f in clips.items()},
            )
        return Pass(self, batch, wanted=wanted)

    def _part_of(self, images: Images) -> Images:
        """The images without the stage's share of their patches, drawn anew for every image."""
        n, device = int(self.part("vision").tokens), images.pixels.device
        return replace(images, keep=random_keep(len(images), n, self.patch_dropout, device)[0])

    def saved_state(self) -> dict[str, Tensor]:
        """The weights a checkpoint must hold: all except those that a part loads from its package and that never change, and those
        of teachers that are other models.
        """
        packaged = [p for n in sorted(self.unchanging - self.restarted) for p in self.packaged(n)]
        copied = [f"teachers.{n}." for n, teacher in self.teachers.items() if teacher.copied]  # what never changes is the student's
        others = [f"teachers.{n}." for n, teacher in self.teachers.items() if not teacher.copied]
        left_out = (*packaged, *(prefix + p for prefix in copied for p in packaged), *others)

        def adapted(name: str) -> bool:
            """Whether it is an adapter's weight, of the model or of a copy of it."""
            return self.adapter_owns(next((name.removeprefix(p) for p in copied if name.startswith(p)), name))

        return {k: v for k, v in self.state_dict().items() if not (left_out and k.startswith(left_out)) or adapted(k)}

    def packaged(self, part: str) -> tuple[str, ...]:
        """Prefixes, in the state dict, of a part's weights that come from a package."""
        return tuple(f"parts.{part}.{p}" for p in getattr(self.parts[part], "packaged", ()))

    def note_restarted(self, names: Collection[str]) -> None:
        """Packaged weights that were loaded from elsewhere (their names) are part of the saved state from now on, since the package
        has others.
        """
        own = [name for name in names if not self.adapter_owns(name)]
        self.restarted |= {n for n in self.unchanging if (p := self.packaged(n)) and any(name.startswith(p) for name in own)}

    def adapter_owns(self, name: str) -> bool:
        """Whether a name of the state dict is an adapter's weight."""
        return name.startswith("adapters.") or any(
            adapter.owns(name, f"parts.{self.part_of(n)}.")  # type: ignore[operator]
            for n, adapter in self.adapters.items()
        )

    def bare_name(self, name: str) -> str:
        """The name that a weight of a part has in a model without adapters."""
        for n, adapter in self.adapters.items():
            if name.startswith(f"parts.{self.part_of(n)}."):
                name = adapter.bare(name)  # type: ignore[operator]
        return name

    def merge_adapters(self, but: str = "") -> None:
        """Put what adapters have learned into their parts' weights, except low-rank ones in the part ``but``. DiptychError for one
        that cannot be merged.
        """
        for name in [n for n, adapter in self.adapters.items() if self.part_of(n) != but or not adapter.mark]:
            self.adapters[name].merge()  # type: ignore[operator]
            del self.adapters[name]


def _trains_base(recipe: Recipe, part: str) -> bool:
    """Whether a stage trains a part itself, besides its adapter."""
    return not recipe.parts[part].frozen and any(part in stage.train for stage in recipe.stages if isinstance(stage.train, list))


def has_gradient(x: Any) -> bool:
    """Whether gradients flow through a value: a tensor, or anything made of tensors."""
    if isinstance(x, Tensor):
        return x.requires_grad
    if isinstance(x, tuple | list):
        return any(map(has_gradient, x))
    return is_dataclass(x) and any(has_gradient(getattr(x, f.name)) for f in fields(x))


def build_order(parts: Collection[str]) -> list[str]:
    """Known parts in the order in which they build on each other, then the user's own, then the shared space."""
    known = [name for name in PARTS if name in parts and name != "space"]
    return [*known, *(name for name in parts if name not in PARTS), *(["space"] if "space" in parts else [])]


def default_space(parts: Any) -> str:
    """The kind of shared space if the recipe names none: the one that the text tower needs, or the language model's states; "":
    none.
    """
    if {"vision", "text"} <= set(parts):
        return str(parts["text"].space)
    return "states" if "lm" in parts and "text" not in parts else ""


def build_part(name: str, part: PartSpec, build: Build) -> nn.Module:
    """A part with fresh weights, or those of its package."""
    build.where, build.frozen = f"parts.{name}", part.frozen
    cls = resolve(part.kind, KINDS.get(name, {}), f"{name} part")
    made: nn.Module = cls(build, **check_options(cls, part.options, build.where))
    return made


def build_model(recipe: Recipe, tokenizer: Any, image_size: int, corpus: Sequence[str] = (), kept: list[int] | None = None) -> VLM:
    """The model of a recipe with fresh weights (pretrained where a part says so).

    tokenizer: None if a language model brings its own; its vocabulary is then trimmed to ``corpus``, the training captions,
    or to the ids ``kept`` of an earlier trim.
    """
    size, length = SIZES[recipe.size], recipe.data.tokenizer.max_length
    build = Build(size, image_size, tokenizer, list(corpus), kept, length, recipe.embed_dim or size.embed_dim)
    model = VLM(recipe, build)
    if model.tokenizer is None:
        raise DiptychError("data.tokenizer.kind: lm needs a part 'lm', which the recipe does not have; use bpe")
    return model
