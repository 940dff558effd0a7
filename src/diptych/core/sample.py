"""A ``Sample`` from a source: named fields of plain values (arrays, texts)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

IMAGE = "<image>"  # marks the place of an image in a turn's text


class Turn(NamedTuple):
    """What one side says in a conversation."""

    role: str  # system, user or assistant
    text: str


class Captions(NamedTuple):
    """The texts of a sample.

    meanings: parallel to ``texts``; captions with the same meaning are not counted as negatives of each other by a contrastive
    loss. Empty: the source does not know, and a caption's normalised text is its meaning.
    """

    texts: list[str]
    meanings: list[str] = []  # noqa: RUF012 - never changed


@dataclass(frozen=True)
class Label:
    """A class of the source's list of classes."""

    index: int
    name: str


Box = tuple[float, float, float, float]  # left, top, right, bottom
Point = tuple[float, float]  # x, y


class Region(NamedTuple):
    """A part of the image and the phrase for it.

    box: left, top, right, bottom in pixels of the sample's image. mask: bool [height, width] of the whole image; None: not known.
    negatives: wrong versions of the phrase, such as with one attribute changed. point: x, y in pixels; None: not known.
    """

    box: Box
    phrase: str
    mask: np.ndarray | None = None
    negatives: tuple[str, ...] = ()
    point: Point | None = None


class Conversation(NamedTuple):
    """Turns about images, which are shown in the order of the ``<image>`` marks. images: None means the sample's one image."""

    turns: list[Turn]
    images: list[np.ndarray] | None = None


class Video(NamedTuple):
    """Frames, uint8 [height, width, 3], and when each is shown, in seconds from the start."""

    frames: list[np.ndarray]
    seconds: list[float]


class Document(NamedTuple):
    """Texts and images in order."""

    parts: list[str | np.ndarray]


class Sample:
    """Named fields with an id.

    Built-in fields: ``image`` (uint8 [height, width, 3], RGB), ``text`` (``Captions``), ``negatives`` (a minimally wrong version of
    each caption, "" where there is none), ``label`` (``Label``), ``regions`` (list of ``Region``), ``turns`` (``Conversation``),
    ``video`` (``Video``), ``document`` (``Document``). A sample has the fields that its source provides; an image without a caption
    is a sample without ``text``.
    extra: what else the source knows, as plain data (boxes, questions, a scene graph).
    """

    __slots__ = ("extra", "fields", "id")

    def __init__(self, id: str, /, extra: dict[str, Any] | None = None, **fields: Any):
        self.id = id
        self.fields: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
        self.extra = {} if extra is None else extra

    def __repr__(self) -> str:
        return f"Sample({self.id!r}, {', '.join(self.fields)})"

    def __eq__(self, other: object) -> bool:
        """Whether id, fields and extras are the same, arrays element by element."""
        return isinstance(other, Sample) and _same((self.id, self.fields, self.extra), (other.id, other.fields, other.extra))

    __hash__ = None  # type: ignore[assignment]

    def with_(self, id: str | None = None, extra: dict[str, Any] | None = None, **fields: Any) -> Sample:
        """The same sample with another id, other extras or other fields; a field that is None is left out."""
        return Sample(self.id if id is None else id, self.extra if extra is None else extra, **{**self.fields, **fields})

    @property
    def image(self) -> np.ndarray | None:
        """The picture, uint8 [height, width, 3]; None if the sample has none."""
        return self.fields.get("image")

    @property
    def captions(self) -> list[str]:
        """The texts; empty if there are none."""
        text = self.fields.get("text")
        return [] if text is None else text.texts

    @property
    def meanings(self) -> list[str]:
        """What the captions mean (``Captions``); empty where the source does not say."""
        text = self.fields.get("text")
        return [] if text is None else text.meanings

    @property
    def negatives(self) -> list[str]:
        """A wrong version of each caption, as far as the source knows one."""
        negatives: list[str] = self.fields.get("negatives", [])
        return negatives

    @property
    def turns(self) -> list[Turn]:
        """The conversation; empty if there is none."""
        conversation = self.fields.get("turns")
        return [] if conversation is None else conversation.turns

    @property
    def images(self) -> list[np.ndarray]:
        """The images of a conversation in the order in which they are shown; else the one image, or none."""
        conversation: Conversation | None = self.fields.get("turns")
        if conversation is not None and conversation.images is not None:
            return conversation.images
        return [] if self.image is None else [self.image]


def _same(a: Any, b: Any) -> bool:
    """Equality of plain values that may hold arrays, of which ``==`` alone makes no truth value."""
    if hasattr(a, "dtype") or hasattr(b, "dtype"):
        import numpy as np

        alike = getattr(a, "dtype", None) == getattr(b, "dtype", None) and np.shape(a) == np.shape(b)
        return alike and bool(np.array_equal(a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(value, b[key]) for key, value in a.items())
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        kinds = isinstance(a, list) == isinstance(b, list)
        return kinds and len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def class_text(name: str) -> str:
    """The name of a class as a text writes it: file names have underscores for spaces."""
    return name.replace("_", " ")


def in_template(template: str, name: str) -> str:
    """``template`` with the name of a class in place of ``{}``, and the article that the name needs: "a photo of an owl"."""
    if name[:1].lower() in "aeiou" and name[:3].lower() not in ("uni", "use", "eur", "one"):
        template = template.replace("a {}", "an {}")
    return template.format(name)


def captioned(texts: Sequence[str], meanings: Sequence[str] = ()) -> Captions:
    """Captions as a sample holds them."""
    return Captions(list(texts), list(meanings))


def flat(values: Sequence[Sequence[Any]]) -> tuple[list[Any], list[int]]:
    """Several lists as one, and the index of the list that each entry comes from."""
    return [v for row in values for v in row], [i for i, row in enumerate(values) for _ in row]
