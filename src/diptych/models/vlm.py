"""A model is the parts that its recipe names, the projections into the shared space, and the objectives' own parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diptych.config.recipe import PARTS, Part, Recipe
from diptych.core.batch import Batch
from diptych.core.errors import DiptychError
from diptych.core.registry import check_options, resolve
from diptych.models.build import SIZES, Build
from diptych.models.connectors import CONNECTOR
from diptych.models.decoders.multimodal import DECODER
from diptych.models.fusion.cross import FUSION
from diptych.models.language.lm import ADAPTER, LM
from diptych.models.layers.attention import Transformer
from diptych.models.layers.rotary import RotaryTransformer
from diptych.models.passes import Pass
from diptych.models.text.towers import TEXT
from diptych.models.vision.drawn import random_keep
from diptych.models.vision.features import Features, fits
from diptych.models.vision.quantizer import QUANTIZER
from diptych.models.vision.towers import VISION

KINDS: dict[str, dict[str, Any]] = {
    "vision": VISION,
    "text": TEXT,
    "connector": CONNECTOR,
    "fusion": FUSION,
    "decoder": DECODER,
    "lm": LM,
    "quantizer": QUANTIZER,
}


class VLM(nn.Module):
    """Parts by name; ``model.encode(batch)`` gives the ``Pass`` that objectives and scorers work on."""

    def __init__(self, recipe: Recipe, build: Build):
        super().__init__()
        self.parts = nn.ModuleDict()
        self.patch_dropout = 0.0  # share of the image tokens left out of every training pass (FLIP); set by the stage
        self.views, self.least = 1, 1.0  # random crops of each image and their least area, for an objective that asks for them
        self.features: Features | None = None  # of a tower that never changes, remembered by image
        self.captions = False  # whether an objective learns captions, which a language model then reads beside the image's state
        self.frozen: frozenset[str] = frozenset()
        for name in PARTS:
            if name in recipe.parts:
                self.parts[name] = build_part(name, recipe.parts[name], build)
                build.parts[name] = self.parts[name]
        self.fixed = {name for name, part in recipe.parts.items() if part.frozen}
        self.freeze(self.fixed)
        self.tokenizer = build.tokenizer
        self.image_size = build.image_size
        self.licences = tuple(build.licences)
        self.embeds_by_lm = "lm" in self.parts and "text" not in self.parts  # the language model's states are the shared space
        own = recipe.embed_dim or build.size.embed_dim
        self.embed_dim = build.width_of("lm") if self.embeds_by_lm else own
        self.image_projection: nn.Module = nn.Identity()
        self.text_projection: nn.Module = nn.Identity()
        if {"vision", "text"} <= set(self.parts):
            self.image_projection = projection(self.parts["text" if self.asks else "vision"], self.embed_dim, "vision")
            self.text_projection = projection(self.parts["text"], self.embed_dim, "text")

    def freeze(self, names: set[str]) -> None:
        """Keep these parts as they are: no gradients, no optimizer state, evaluation mode."""
        self.frozen = frozenset(names)
        for name, part in self.parts.items():
            part.requires_grad_(name not in names)
            part.train(self.training and name not in names)

    def train(self, mode: bool = True) -> VLM:
        super().train(mode)
        for name in self.frozen:
            self.parts[name].eval()
        if "lm" in self.parts:
            self.parts["lm"].draws = mode  # type: ignore[assignment]
        return self

    def remember_features(self, images: int) -> None:
        """If the tower is frozen and what it says of so many images fits in memory."""
        tower: Any = self.parts["vision"] if "vision" in self.fixed else None
        if tower is not None and fits(images, getattr(tower, "extra", 0) + tower.tokens, tower.width):
            self.features = Features()

    def part(self, name: str) -> Any:
        if name not in self.parts:
            raise DiptychError(
                f"the recipe has no part '{name}', which its objectives or its score need; parts: {', '.join(self.parts)}"
            )
        return self.parts[name]

    @property
    def reads_codes(self) -> bool:
        """Whether its decoder takes word ids and image codes instead of what towers say of them."""
        return "decoder" in self.parts and getattr(self.parts["decoder"], "reads_codes", False)

    @property
    def asks(self) -> bool:
        """Whether an image is known by what queries of the text part have found in it, each with an embedding (BLIP-2)."""
        return "text" in self.parts and hasattr(self.parts["text"], "look")

    def run(self, name: str, *inputs: Any) -> Any:
        """A part's output, without a graph where the part is frozen and nothing before it learns."""
        part = self.part(name)
        if name in self.frozen and not any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
            with torch.no_grad():
                return part(*inputs)
        return part(*inputs)

    def set_training(self, patch_dropout: float, gradient_checkpointing: bool) -> None:
        """How a stage trains: the share of image tokens left out, and whether blocks are computed again in the backward pass."""
        self.patch_dropout = patch_dropout
        for module in self.modules():
            if isinstance(module, Transformer | RotaryTransformer):
                module.checkpointing = gradient_checkpointing

    def draw_patches(self, batch_size: int, device: torch.device) -> Tensor | None:
        """Which image tokens [B, K] a training pass looks at, drawn anew for every image; None: all (FLIP, Li et al. 2023, §3)."""
        if not (self.training and self.patch_dropout):
            return None
        return random_keep(batch_size, int(self.part("vision").tokens), self.patch_dropout, device)[0]

    def encode(self, batch: Batch) -> Pass:
        return Pass.of(self, batch)

    def saved_state(self) -> dict[str, Tensor]:
        """The weights a checkpoint must hold: all but those that a part loads from its package and never changes, being frozen or having adapters."""
        packaged = tuple(f"parts.{n}.{p}" for n in sorted(self.fixed) for p in getattr(self.parts[n], "packaged", ()))
        adapted = tuple(f"parts.{n}." for n, part in self.parts.items() if getattr(part, "lora", None) is not None)
        kept = {k: v for k, v in self.state_dict().items() if not (adapted and k.startswith(adapted) and ADAPTER not in k)}
        return {k: v for k, v in kept.items() if not k.startswith(packaged)} if packaged else kept


def projection(tower: Any, embed_dim: int, name: str) -> nn.Module:
    """Into the shared space: linear, ``affine`` or ``none``, as the tower's ``projection`` says."""
    kind = getattr(tower, "projection", "linear")
    if kind == "none":
        if tower.width != embed_dim:
            raise DiptychError(f"embed_dim: parts.{name} gives its embedding itself, which is {tower.width} wide, not {embed_dim}")
        return nn.Identity()
    return nn.Linear(tower.width, embed_dim, bias=kind == "affine")


def build_part(name: str, part: Part, build: Build) -> nn.Module:
    build.where, build.frozen = f"parts.{name}", part.frozen
    cls = resolve(part.kind, KINDS[name], f"{name} part")
    return cls(build, **check_options(cls, part.options, build.where))


def build_model(recipe: Recipe, tokenizer: Any, image_size: int, corpus: Sequence[str] = (), kept: list[int] | None = None) -> VLM:
    """The model of a recipe with fresh weights (pretrained where a part says so).

    tokenizer: None where a language model brings its own; its vocabulary is then trimmed to ``corpus``, the training captions,
    or to the ids ``kept`` of an earlier trim.
    """
    length = recipe.data.tokenizer.max_length
    model = VLM(recipe, Build(SIZES[recipe.size], image_size, tokenizer, list(corpus), kept, length))
    if model.tokenizer is None:
        raise DiptychError("data.tokenizer.kind: lm needs a part 'lm', which the recipe does not have; use bpe")
    return model
