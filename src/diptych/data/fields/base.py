"""The base class of field kinds."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from diptych.core.batch import Collated, floats
from diptych.core.sample import Sample
from diptych.data.order import mixed

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from diptych.config.recipe import FieldSpec
    from diptych.data.source import Problem, Source


@dataclass
class Context:
    """What fields may need to be built.

    tokenizer: for texts. text_mask: share of a caption's tokens hidden in training. augment: operations on images; views:
    operations for the field ``views`` (``data.augment``). chat: the language model's chat template, for conversations. own: the
    recipe's own fields; options: of the field that is built.
    """

    tokenizer: Any = None
    image_size: int = 224
    augment: Any = "none"
    text_mask: float = 0.0
    chat: Any = None
    pack: bool = False
    views: Any = "simclr"
    source: Source | None = None
    own: Mapping[str, str | FieldSpec] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Draw:
    """A sample at its place in the stream, with the random draws for it there, which depend on (seed, position) alone."""

    seed: int
    position: int
    sample: Sample  # without what was fitted
    fitted: dict[str, Any]  # by field

    def stream(self, stream: int) -> random.Random:
        """Random numbers of one of several independent streams."""
        return random.Random(mixed(self.seed, self.position, stream))

    @cached_property
    def words(self) -> random.Random:
        """Random numbers for the text."""
        return self.stream(2)

    @cached_property
    def caption(self) -> int:
        """The index of the caption that is read at this position."""
        return self.words.randrange(len(self.sample.captions))


class Field:
    """One field kind. Subclasses define how a value becomes part of a batch; methods that they leave out have a default.

    kind: of the field for towers (``{image}`` in ``provides``). inner: parts of the collated field that are fields themselves, with
    their kinds.
    derived: whether it is made of other fields if a source has none. made_of: fields of which it is made for a sample without it.
    added: columns of a packed value that a version of the format added, by its number; older shards do not have them.
    talks: whether it is laid out by a language model's chat template (``Context.chat``).
    drawn: whether ``fit`` draws at random, so that its result must not be kept. moves: whether it moves the pixels of the sample's
    image in a way that boxes cannot follow. sides: fields of regions in the same batch: the image is not flipped where one of their
    phrases speaks of left or right (set by the loader).
    """

    kind: ClassVar[str] = ""
    inner: ClassVar[Mapping[str, str]] = {}
    derived: ClassVar[bool] = False
    made_of: ClassVar[tuple[str, ...]] = ()
    added: ClassVar[Mapping[int, tuple[str, ...]]] = {}
    talks: ClassVar[bool] = False
    drawn = False
    moves = False
    sides: tuple[str, ...] = ()

    def __init__(self, name: str):
        self.name = name
        self.note: Callable[[Problem], None] = (
            ignore  # records what is wrong with an item that is used nevertheless; set by the loader
        )

    @classmethod
    def build(cls, name: str, context: Context) -> Field:
        """The field of this name for a loader."""
        return cls(name, **context.options)

    def fit(self, sample: Sample, rng: Callable[[], random.Random]) -> Any:
        """A sample's value as it is kept until it is collated: decoded, at the model's size, augmented. Raises ``BrokenItem`` if it
        cannot be used.
        """
        raise NotImplementedError

    def collate(self, rows: Sequence[Draw]) -> Collated | None:
        """A batch of it; None if no sample has any."""
        raise NotImplementedError

    def rest(self, sample: Sample) -> Sample:
        """The sample as it is kept next to the fitted values: without its large fields."""
        return sample.with_(**{self.name: None}) if self.name in sample.fields else sample

    def memory(self) -> int:
        """Roughly how many bytes one fitted value takes."""
        return 0

    # --- packing ---

    @classmethod
    def schema(cls) -> dict[str, pa.DataType]:
        """Arrow columns of a packed value, by name; the value's presence is a column of the shard."""
        return {}

    @classmethod
    def pack(
        cls, value: Any, scale: Callable[[np.ndarray], np.ndarray], store: Callable[[np.ndarray], bytes | None]
    ) -> dict[str, Any]:
        """A value as a row of these columns. scale: a picture at the packed size; store: a picture as bytes, None if it is the
        sample's own image.
        """
        return {}

    @classmethod
    def unpack(cls, row: Mapping[str, Any], load: Callable[[bytes | None, int, int], np.ndarray]) -> Any:
        """The value again. load(bytes or None, height, width): a picture."""
        return None

    @classmethod
    def scaled(cls, value: Any, x: float, y: float) -> Any:
        """The value where the sample's image is ``x`` times as wide and ``y`` times as high; for fields in pixels."""
        return value

    # --- controls and pictures ---

    @classmethod
    def blank(cls, value: Any) -> Any:
        """A value of the same shape that says nothing: the blind control."""
        return value

    @classmethod
    def shuffle(cls, values: Sequence[Any], rng: random.Random) -> list[Any]:
        """The values exchanged between samples: no sample keeps its own if there are two or more. The shuffled control."""
        order = list(range(len(values)))
        rng.shuffle(order)
        cycle = dict(zip(order, order[1:] + order[:1], strict=True))  # one cycle: no sample keeps its own
        return [values[cycle[i]] for i in range(len(values))]

    @classmethod
    def draw(cls, value: Any) -> list[Any]:
        """What to show a person: pictures (uint8 arrays) and lines of text, in order."""
        return [str(value)]


def words_of_sides(sample: Sample, sides: Sequence[str]) -> list[str]:
    """All texts of a sample of which one about left or right forbids a flip: its captions, and the phrases of its regions and their
    wrong versions in the fields ``sides``.
    """
    regions = [region for name in sides for region in sample.fields.get(name, ())]
    return [*sample.captions, *(text for region in regions for text in (region.phrase, *region.negatives))]


def ignore(problem: Problem) -> None:
    """Does nothing: no loader records the problem."""


def grey(image: np.ndarray) -> np.ndarray:
    """A picture of the same size, all middle grey."""
    import numpy as np

    return np.full_like(image, 128)


def stacked(images: Sequence[np.ndarray]) -> Any:
    """uint8 [H, W, 3] images of one size → uint8 tensor [B, 3, H, W], a quarter of the size of floats; channels last in memory."""
    import numpy as np
    import torch

    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def to_pixels(images: Sequence[np.ndarray]) -> Any:
    """uint8 [H, W, 3] images of one size → float tensor [B, 3, H, W] in [-1, 1]."""
    return floats(stacked(images))
