"""What a part is: a module that says what it provides, with the few facts that builder, trainer and checkpoints need of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from diptych.core.batch import Images, Texts, Tokens
from diptych.core.graph import provides

if TYPE_CHECKING:
    from diptych.models.build import Build


class Part(nn.Module):
    """Subclasses take a ``Build`` and keyword-only options, which recipes set.

    width: of the vectors that it gives. packaged: prefixes of parameters that come from a package and are in no checkpoint while
    the part is frozen.
    called: methods beside ``forward`` that the trainer must know of when it shards the part. borrows: it computes with another
    part's weights, so it cannot be sharded. works_in: the part that its layers work inside, by hooks. replicated: parameters that
    are never sharded. weights: the package of its weights, for messages.
    """

    width: int
    packaged: tuple[str, ...] = ()
    called: tuple[str, ...] = ()
    borrows: bool = False
    works_in: str = ""
    replicated: tuple[str, ...] = ()
    weights: str = ""
    can: frozenset[str] = frozenset()  # capabilities (``core.capabilities``) that a model has by it
    begins_with: str = ""  # of a part that generates text: the encoding that its ``start`` takes
    limited: bool = False  # it has no more positions than the tokenizer's longest text
    takes_prompts: bool = False  # whether learned vectors may join its tokens (``adapters.prompt``)
    read_directly: tuple[str, ...] = ()  # linear layers whose weights it uses without calling them: nothing can be put beside these
    prompts: Sequence[Any] = ()

    @property
    def adapted_root(self) -> nn.Module:
        """The module whose linear layers adapters join."""
        return self

    @property
    def learns(self) -> bool:
        """Whether anything in it is trained now."""
        return any(p.requires_grad for p in self.parameters())

    @property
    def own_tokenizer(self) -> Any:
        """A tokenizer that the part brings for the whole model; None: it brings none."""
        return None

    def attach(self, build: Build) -> None:
        """Called by the builder when all parts exist, for a part that works inside another one."""

    def prepare(self, stage_training: bool) -> None:
        """Called when the model changes between training and evaluation, also where the part itself is frozen."""


class VisionTower(Part):
    """Pixels in, ``Tokens`` out: ``forward(pixels [B, 3, H, W] in [−1, 1], keep) -> Tokens``, class tokens first.

    tokens: N, the patches; extra: class tokens before them; grid: patches a side. hides: ``forward`` takes ``hidden`` too (mask
    tokens).
    projection: how the shared space reads it: a linear map, an affine one, or none where it gives the embedding itself.
    """

    tokens: int
    extra: int = 0
    hides: bool = False
    projection: Literal["linear", "affine", "none"] = "linear"

    @provides("{image}.tokens", "{image}")
    def encode(self, image: Images) -> Tokens:
        """tokens [B, extra + N, D], pooled [B, D]"""
        if image.hidden is not None:
            return self(image.floats, image.keep, image.hidden)
        return self(image.floats, image.keep)

    @provides("{image}.class_tokens", "{image}.tokens")
    def class_tokens(self, tokens: Tokens) -> Any:
        """The class (or mixture) tokens alone, [B, extra, D]."""
        return tokens.tokens[:, : self.extra]


class TextTower(Part):
    """Token ids in, ``Tokens`` out: ``forward(ids [B, T], mask [B, T], strings) -> Tokens``. projection: as of ``VisionTower``.

    space: the kind of shared space that it asks for, where the recipe names none.
    """

    projection: Literal["linear", "affine", "none"] = "linear"
    space: str = "linear"

    @provides("{text}.tokens", "{text}")
    def encode(self, text: Texts) -> Tokens:
        """tokens [B, T, D], pooled [B, D], mask [B, T]"""
        return self(text.ids, text.mask, text.strings)

    @provides("{text}.pooled", "{text}.tokens")
    def pooled(self, tokens: Tokens) -> Any:
        """[B, D]"""
        return tokens.pooled
