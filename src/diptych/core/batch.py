"""A ``Batch`` goes into a model, ``Tokens`` come out of a tower.

A batch holds named fields, each a ``Collated``: tensors of all its samples together. Where a sample has several entries (negatives,
regions, frames), the field is a flat list, and ``owner`` holds the row of the sample that each entry belongs to.

Shape legend, used everywhere: B batch, N image tokens, T text tokens, D width, H heads, E embedding, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Tokens:
    """The output of a tower: a vector for each token, and one for the whole."""

    tokens: Tensor  # [B, N, D]
    pooled: Tensor  # [B, D]
    mask: Tensor | None = None  # [B, N] bool, True where a token is real; None: all tokens are
    learned: Tensor | None = None  # [B, n, D], what an adapter's vectors among them have become; None: there are none
    places: Tensor | None = None  # [B, N] int64, the patch of each, where a tower has left some out (class tokens aside)

    def __getitem__(self, index: Tensor) -> Tokens:
        """Rows of the batch, in the order of ``index``."""
        mask, learned, places = (None if x is None else x[index] for x in (self.mask, self.learned, self.places))
        return Tokens(self.tokens[index], self.pooled[index], mask, learned, places)

    def trimmed(self) -> Tokens:
        """Without the padding that no row of the batch needs."""
        if self.mask is None or (longest := int(self.mask.sum(1).max())) == self.mask.shape[1]:
            return self
        return Tokens(self.tokens[:, :longest], self.pooled, self.mask[:, :longest], self.learned)


# --- fields of a batch ---


class Collated:
    """One field of a batch. Subclasses are dataclasses of tensors, tuples with an entry a row, and other ``Collated``.

    row_wise: names of attributes with an entry for each row; beside: names of fields with rows of their own, which are joined when
    batches are joined; of_rows: those among them that have rows of this field as owners, not samples; padded: names of tensors
    [n, T, …] that are padded to a common T then; heavy: names of attributes that are left out once only the encodings of the field
    are needed.
    """

    row_wise: ClassVar[tuple[str, ...]] = ()
    beside: ClassVar[tuple[str, ...]] = ()
    of_rows: ClassVar[tuple[str, ...]] = ()
    padded: ClassVar[tuple[str, ...]] = ()
    heavy: ClassVar[tuple[str, ...]] = ()
    owner: Tensor | None  # [n] int64, the sample of each row; None: row i is of sample i

    def __len__(self) -> int:
        return len(getattr(self, self.row_wise[0]))

    def _map(self, change: Any) -> Self:
        """The field with ``change`` applied to every tensor, nested ones included."""
        changed = {}
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if isinstance(value, Collated):
                changed[f.name] = value._map(change)
            elif hasattr(value, "to"):
                changed[f.name] = change(value)
        return replace(self, **changed)  # type: ignore[type-var]

    def to(self, device: Any) -> Self:
        """The field on a device."""
        return self._map(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """In page-locked memory, from which a GPU can copy while the program continues."""
        return self._map(lambda x: x.pin_memory())

    def shapes(self) -> tuple[Any, ...]:
        """The shapes that determine the cost of encoding it."""
        values = [getattr(self, f.name) for f in fields(self)]  # type: ignore[arg-type]
        return tuple(v.shapes() if isinstance(v, Collated) else tuple(v.shape) for v in values if hasattr(v, "to"))

    def __getitem__(self, rows: Tensor) -> Self:
        """The rows at ``rows``, in this order; a row may occur more than once. ValueError if a field has values with rows of their
        own (``beside``), which would have to be picked too.
        """
        if left := [name for name in self.beside if getattr(self, name) is not None]:
            raise ValueError(
                f"no rows can be picked of {type(self).__name__} with {' and '.join(left)}: these have rows of their own"
            )
        picked: dict[str, Any] = {}
        for name in self.row_wise:
            value = getattr(self, name)
            if isinstance(value, tuple):
                picked[name] = tuple(value[i] for i in rows.tolist()) if value else ()
            elif value is not None:
                picked[name] = value[rows]
        if self.owner is not None:
            picked["owner"] = self.owner[rows]
        return replace(self, **picked)  # type: ignore[type-var]

    def trimmed(self) -> Self:
        """Without padding that no row needs; most fields have none."""
        return self

    def count(self, image_tokens: int) -> int:
        """How many tokens of it a model reads; ``image_tokens``: those of one image."""
        inner = [v for f in fields(self) if isinstance(v := getattr(self, f.name), Collated)]  # type: ignore[arg-type]
        return sum(v.count(image_tokens) for v in inner)

    def light(self) -> Self | None:
        """Without the attributes in ``heavy``, for use when the encodings are known; None: nothing is left."""
        return None if set(self.row_wise) <= set(self.heavy) else replace(self, **dict.fromkeys(self.heavy))  # type: ignore[type-var]

    @classmethod
    def cat(cls, parts: Sequence[Any], starts: Sequence[int], length: int | None = None) -> Any:
        """This field of consecutive batches as one. starts: position of the first sample of each; length: the least length of
        padded tensors.
        """
        import torch

        joined: dict[str, Any] = {}
        for name in (*cls.row_wise, *cls.beside):
            begins = accumulate((len(p) for p in parts), initial=0) if name in cls.of_rows else starts
            have = [(v, start) for p, start in zip(parts, begins, strict=False) if (v := getattr(p, name)) is not None]
            values = [v for v, _ in have]
            if not values:
                continue
            if isinstance(values[0], tuple):
                joined[name] = tuple(x for v in values for x in v)
            elif isinstance(values[0], Collated):
                joined[name] = type(values[0]).cat(values, [start for _, start in have], length)
            else:
                if name in cls.padded:
                    longest = max(length or 0, *(v.shape[1] for v in values))
                    values = [lengthened(v, longest) for v in values]
                joined[name] = torch.cat(values)
        if parts[0].owner is not None:
            joined["owner"] = torch.cat([p.owner + start for p, start in zip(parts, starts, strict=True)])
        return replace(parts[0], **joined)


def lengthened(x: Tensor, length: int) -> Tensor:
    """[n, T] or [n, T, D] → [n, length, …], padded with zeros (the padding's id) at the end."""
    import torch.nn.functional as F

    return F.pad(x, (0, 0) * (x.ndim - 2) + (0, length - x.shape[1]))


@dataclass
class Images(Collated):
    """Images of one size.

    keep: the only patches that the tower reads (FLIP's patch dropping, masked autoencoding); hidden: patches that it replaces by a
    mask token.
    """

    pixels: Tensor  # [n, 3, H, W], uint8 from a loader, or float in [−1, 1]
    owner: Tensor | None = None
    keep: Tensor | None = None  # [n, K] int64; None: all
    hidden: Tensor | None = None  # [n, N] bool; None: none

    row_wise: ClassVar[tuple[str, ...]] = ("pixels", "keep", "hidden")
    heavy: ClassVar[tuple[str, ...]] = ("pixels", "keep", "hidden")

    @cached_property
    def floats(self) -> Tensor:
        """[n, 3, H, W], float32 in [−1, 1]. Converted late, on the device: bytes take less memory and are faster to copy."""
        return floats(self.pixels)

    def count(self, image_tokens: int) -> int:
        """How many tokens of it a model reads; ``image_tokens``: those of one image."""
        return len(self) * image_tokens


@dataclass
class Texts(Collated):
    """Tokenised texts."""

    ids: Tensor  # [n, T] int64: [BOS] words [EOS] [PAD]…
    mask: Tensor  # [n, T] bool, True at real tokens
    strings: tuple[str, ...] = ()  # the texts themselves, for towers with a tokenizer of their own
    meaning: Tensor | None = None  # [n] int64; equal numbers, in any batch: texts that mean the same
    owner: Tensor | None = None

    row_wise = ("ids", "mask", "strings", "meaning")
    padded = ("ids", "mask")

    def trimmed(self) -> Texts:
        """Without padding that no row needs; most fields have none."""
        longest = int(self.mask.sum(1).max())
        return self if longest == self.mask.shape[1] else replace(self, ids=self.ids[:, :longest], mask=self.mask[:, :longest])

    def count(self, image_tokens: int) -> int:
        """How many tokens of it a model reads; ``image_tokens``: those of one image."""
        return int(self.mask.sum())


@dataclass
class Labels(Collated):
    """The class of each sample, from a list that is the same in every batch."""

    index: Tensor  # [n] int64
    classes: Texts  # all C of them, in order
    owner: Tensor | None = None

    row_wise = ("index",)


@dataclass
class Regions(Collated):
    """Boxes with their phrases. Boxes and points are shares of the width and height of the square that the model reads.

    masks, points, negatives: None unless the field's options ask for them; a region without a mask has its box as mask, and one
    without a point the centre of its box. ``negatives.owner`` holds the row of the region that each is a wrong version of.
    """

    boxes: Tensor  # [n, 4] float32: left, top, right, bottom
    phrases: Texts  # n
    owner: Tensor | None = None
    masks: Tensor | None = None  # [n, S, S] bool, at the size of the model's images
    points: Tensor | None = None  # [n, 2] float32: x, y
    negatives: Texts | None = None  # m, any number a region

    row_wise = ("boxes", "phrases", "masks", "points")
    beside = ("negatives",)
    of_rows = ("negatives",)

    def __getitem__(self, rows: Tensor) -> Regions:
        """The rows at ``rows`` in this order, each with its negatives."""
        picked = super(Regions, replace(self, negatives=None)).__getitem__(rows)
        if self.negatives is None or self.negatives.owner is None:
            return picked
        new, old = (rows[:, None] == self.negatives.owner[None]).nonzero(as_tuple=True)
        return replace(picked, negatives=replace(self.negatives[old], owner=new) if len(old) else None)


@dataclass
class Videos(Collated):
    """Clips as flat frames: ``frames.owner`` says which sample each belongs to.

    keep: the only tokens of each clip that a tower of whole clips reads (masked autoencoding); ``frames.keep`` are those of each
    frame, for a tower of pictures.
    """

    frames: Images
    seconds: Tensor  # [n] float32, of each frame, from the start of its clip
    owner: Tensor | None = None
    keep: Tensor | None = None  # [B, K] int64, with a row for each clip; None: all

    row_wise: ClassVar[tuple[str, ...]] = ("seconds", "frames")
    beside: ClassVar[tuple[str, ...]] = ("keep",)
    heavy: ClassVar[tuple[str, ...]] = ("frames", "seconds", "keep")

    @property
    def rows(self) -> Tensor | None:
        """The row of a part's output that each frame belongs to, [n] int64: its clip. None: each frame is a clip."""
        return self.owner


@dataclass
class Segments(Videos):
    """Clips as pieces with a text each: every clip has ``pieces`` of them, every piece the same number of frames, in their order.

    Parts read a piece as a clip of its own (``rows``); ``owner`` is the sample of each frame, as everywhere.
    """

    segment: Tensor | None = None  # [n] int64, the number of each frame's piece in its clip
    place: Tensor | None = None  # [n] int64, the place in the whole clip that a model is given; −1 − k: the k-th unknown place
    texts: Texts | None = None  # a text for each piece, B · pieces
    story: Texts | None = None  # the same as one text for each clip: [BOS] words [BOS] words … [EOS], B
    pieces: int = 1

    row_wise = ("seconds", "frames", "segment", "place")
    beside = ("keep", "texts", "story")
    heavy = ("frames", "keep")

    @property
    def rows(self) -> Tensor | None:
        """The piece of each frame among those of all clips, [n] int64."""
        assert self.owner is not None and self.segment is not None
        return self.owner * self.pieces + self.segment


@dataclass
class Documents(Collated):
    """Texts and images in order. ``kind`` lists the parts of all documents one after the other; its k-th text is the k-th of
    ``texts``, and its k-th image the k-th of ``images``.
    """

    kind: Tensor  # [n] int64: 0 a text, 1 an image
    texts: Texts | None
    images: Images | None
    owner: Tensor | None = None

    row_wise = ("kind",)
    beside = ("texts", "images")


@dataclass
class Turns(Collated):
    """Conversations as rows of tokens; a row may hold several."""

    ids: Tensor  # [R, T] int64; −1 where an image token goes
    mask: Tensor  # [R, T] bool
    learned: Tensor  # [R, T] bool, True at tokens that are to be predicted
    positions: Tensor  # [R, T] int64, from 0 in each conversation
    images: Images | None = None  # of all conversations, in the order in which they are shown
    owner: Tensor | None = None

    row_wise = ("ids", "mask", "learned", "positions")
    beside = ("images",)
    padded = ("ids", "mask", "learned", "positions")

    def count(self, image_tokens: int) -> int:
        """How many tokens of it a model reads; ``image_tokens``: those of one image."""
        return int(self.mask.sum()) + (0 if self.images is None else self.images.count(image_tokens))


@dataclass
class Batch:
    """Fields by name, on one device. start: position of the first sample in the whole batch, of which this may be a piece."""

    fields: dict[str, Any] = field(default_factory=dict)
    size: int = 0  # samples
    start: int = 0
    ids: tuple[str, ...] = ()

    def __contains__(self, name: str) -> bool:
        return name in self.fields

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]

    def get(self, name: str) -> Any:
        """The field, or None."""
        return self.fields.get(name)

    def with_(self, **fields: Collated) -> Batch:
        """The batch with these fields added; they replace those of the same name."""
        return replace(self, fields={**self.fields, **fields})

    def only(self, names: Collection[str]) -> Batch:
        """The batch with these fields alone, as far as it has them."""
        return replace(self, fields={n: f for n, f in self.fields.items() if n in names})

    def to(self, device: Any) -> Batch:
        """The batch on a device."""
        return replace(self, fields={n: f.to(device) for n, f in self.fields.items()})

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory."""
        return replace(self, fields={n: f.pin_memory() for n, f in self.fields.items()})

    def shapes(self) -> tuple[Any, ...]:
        """The shapes that determine the cost of encoding it."""
        return tuple((n, *f.shapes()) for n, f in self.fields.items())

    def light(self) -> Batch:
        """Without pixels, for use when the encodings are known."""
        return replace(self, fields={n: light for n, f in self.fields.items() if (light := f.light()) is not None})

    @staticmethod
    def cat(batches: Sequence[Batch], length: int | None = None) -> Batch:
        """Consecutive pieces of one batch. A field that is missing from some pieces (none of their samples has it) is taken from
        the others.
        """
        starts = [0, *accumulate(b.size for b in batches)]
        joined = {}
        for name in dict.fromkeys(name for b in batches for name in b.fields):
            have = [(b[name], start) for b, start in zip(batches, starts, strict=False) if name in b]
            joined[name] = type(have[0][0]).cat([f for f, _ in have], [start for _, start in have], length)
        return Batch(joined, starts[-1], batches[0].start, tuple(i for b in batches for i in b.ids))


def floats(pixels: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] → float32 in [-1, 1]; floats as they are."""
    import torch

    return pixels if pixels.is_floating_point() else pixels.to(torch.float32).mul_(1 / 127.5).sub_(1.0)
