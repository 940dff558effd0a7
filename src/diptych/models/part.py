"""The base class of parts: a module that declares what it provides, with the attributes that builder and trainer need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from diptych.core.batch import Images, Texts, Tokens
from diptych.core.errors import DiptychError
from diptych.core.graph import provides
from diptych.data.tiles.batch import Tiles
from diptych.data.tiles.native import Native

if TYPE_CHECKING:
    from diptych.models.build import Build


class Part(nn.Module):
    """Subclasses take a ``Build`` and keyword-only options, which recipes set.

    width: of its output vectors. packaged: prefixes of parameters that come from a package and are not in checkpoints while the
    part is frozen. called: methods besides ``forward`` that the trainer must know when it shards the part. borrows: it computes
    with another part's weights, so it cannot be sharded. works_in: the part that its layers work inside, by hooks. replicated:
    parameters that are never sharded. weights: the package of its weights, for messages.
    """

    width: int
    packaged: tuple[str, ...] = ()
    called: tuple[str, ...] = ()
    borrows: bool = False
    works_in: str = ""
    replicated: tuple[str, ...] = ()
    weights: str = ""
    can: frozenset[str] = frozenset()  # capabilities (``core.capabilities``) that it gives the model
    begins_with: str = ""  # of a part that generates text: the encoding that its ``start`` takes
    limited: bool = False  # whether its positions end with the tokenizer's longest text
    takes_prompts: bool = False  # whether learned vectors may join its tokens (``adapters.prompt``)
    read_directly: tuple[str, ...] = ()  # linear layers that it uses without calling them: these cannot have adapters
    prompts: Sequence[Any] = ()  # what adapters put among its tokens (``layers.insertion.Inserted``)

    @property
    def adapted_root(self) -> nn.Module:
        """The module with the linear layers that adapters extend."""
        return self

    def adaptable(self, targets: Sequence[str] | None) -> list[str]:
        """The names within ``adapted_root`` of the layers to adapt, if the part chooses them; targets: endings of names, as the
        recipe gives them. Empty: the adapter chooses.
        """
        return []

    def set_checkpointing(self, on: bool) -> None:
        """Whether layers of a model of another library are computed again in the backward pass."""

    @property
    def places_taken(self) -> int:
        """How many of its positions learned vectors have, which are not left for words."""
        return sum(prompt.count for prompt in self.prompts if prompt.first is None)

    @property
    def learns(self) -> bool:
        """Whether anything in it is trained now."""
        return any(p.requires_grad for p in self.parameters())

    @property
    def own_tokenizer(self) -> Any:
        """A tokenizer that the part brings for the whole model, or None."""
        return None

    def attach(self, build: Build) -> None:
        """Called by the builder when all parts exist, for a part that works inside another one."""

    def prepare(self, stage_training: bool) -> None:
        """Called when the model changes between training and evaluation, also if the part itself is frozen."""


class VisionTower(Part):
    """Pixels in, ``Tokens`` out: ``forward(pixels [B, 3, H, W] in [−1, 1], keep) -> Tokens``, class tokens first.

    tokens: N, the patches; extra: class tokens before them; grid: patches per side. hides: ``forward`` takes ``hidden`` too (mask
    tokens).
    projection: how the shared space reads it: by a linear or an affine map, or by none if it gives the embedding itself.
    """

    __call__: Callable[..., Tokens]  # what ``forward`` gives; torch says Any
    tokens: int
    extra: int = 0
    hides: bool = False
    scattered: bool = False  # whether its tokens are no square of patches, since it merges them
    projection: Literal["linear", "affine", "none"] = "linear"
    windows: int = 0  # tiles of a picture that have adapters of their own (``adapters.windows``); 0: no adapter asks for them
    window: Any = None  # [n] int64, which tile of its picture each is, while the tower reads tiles; 0: the whole picture

    @provides("{image}.tokens", "{image}")
    def encode(self, image: Images) -> Tokens:
        """tokens [B, extra + N, D], pooled [B, D]; of pictures in tiles as ``Tiles.encoded`` says."""
        if isinstance(image, Tiles):
            return image.encoded(self.encode_tiles)
        if isinstance(image, Native):
            raise DiptychError("pictures of sizes of their own (data.fields.image.kind: native) need parts.vision.kind: native")
        if image.hidden is not None:
            return self(image.floats, image.keep, image.hidden)
        return self(image.floats, image.keep)

    def encode_tiles(self, tiles: Images, window: Any) -> Tokens:
        """tokens [n, extra + N, D], pooled [n, D]. window [n] int64: which tile of its picture each is, 0 the whole."""
        if not self.windows:
            return self.encode(tiles)
        if int(window.max()) > self.windows:
            raise DiptychError(f"a picture has {int(window.max())} tiles, and adapters are for {self.windows} windows")
        self.window = window
        try:
            return self.encode(tiles)
        finally:
            self.window = None

    @provides("{image}.class_tokens", "{image}.tokens")
    def class_tokens(self, tokens: Tokens) -> Any:
        """The class (or mixture) tokens alone, [B, extra, D]."""
        return tokens.tokens[:, : self.extra]


class TextTower(Part):
    """Token ids in, ``Tokens`` out: ``forward(ids [B, T], mask [B, T], strings) -> Tokens``. projection: as for ``VisionTower``.

    space: the kind of shared space that it needs, if the recipe names none.
    """

    __call__: Callable[..., Tokens]  # what ``forward`` gives; torch says Any
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
