"""Hard negatives: captions made false by one change, which swaps nouns, attributes or the two sides of a relation."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from diptych.core.errors import DiptychError, nearest
from diptych.curation.operators.base import Columns, Operator
from diptych.data.negatives import meaning, swap_words

Kind = Literal["nouns", "attributes", "relation"]
KINDS: tuple[Kind, ...] = ("nouns", "attributes", "relation")
OPPOSITES = (
    ("to the left of", "to the right of"), ("on the left of", "on the right of"), ("left of", "right of"),
    ("in front of", "behind"), ("above", "below"), ("over", "under"), ("on top of", "underneath"), ("inside", "outside"),
    ("into", "out of"), ("before", "after"),
    ("in the top left", "in the bottom right"), ("in the top right", "in the bottom left"), ("on the left", "on the right"),
    ("at the top", "at the bottom"), ("with", "without"), ("larger than", "smaller than"), ("bigger than", "smaller than"),
    ("taller than", "shorter than"),
)  # fmt: skip
_OTHER = {a: b for pair in reversed(OPPOSITES) for a, b in (pair, pair[::-1])}
_RELATION = re.compile(r"\b(?:" + "|".join(sorted(map(re.escape, _OTHER), key=len, reverse=True)) + r")\b", re.IGNORECASE)
_EQUAL = frozenset(
    ["above", "below", "left", "right", "front", "behind", "over", "under", "before", "after"]
)  # "a fox above a fox" stays the same when swapped


def turn_relation(caption: str, rng: random.Random) -> str | None:
    """``caption`` with one relation reversed; ``None`` if it has no relation, or if both sides are the same."""
    matches = list(_RELATION.finditer(caption))
    rng.shuffle(matches)
    for match in matches:
        before, after = caption[: match.start()], caption[match.end() :]
        if set(match[0].lower().split()) & _EQUAL and after.strip() and meaning(_last(before)) == meaning(_first(after)):
            continue
        other = _OTHER[match[0].lower()]
        return before + (other.capitalize() if match[0][0].isupper() else other) + after
    return None


def _last(text: str) -> str:
    """The phrase directly before a relation, without a frame such as "there is" or "a picture of"."""
    return re.split(r"\b(?:is|are|of|and|that|which)\b|[,.;]", text)[-1]


def _first(text: str) -> str:
    return re.split(r"\b(?:and|with|that|which|is|are)\b|[,.;]", text)[0]


def negative(caption: str, kind: Kind, rng: random.Random) -> str | None:
    """A false version of the caption of one kind, or ``None``; never one with the same meaning."""
    if kind == "relation":
        return turn_relation(caption, rng)
    return swap_words(caption, rng, only={"nouns": "head", "attributes": "modifier"}[kind])


@dataclass(frozen=True, kw_only=True)
class Negatives(Operator):
    """``negative``: the caption with one change that makes it false; ``negative_kind``: which change. Null if there is none.

    The first of ``kinds`` that is possible, in an order shuffled by the row's hash; another ``seed`` gives other changes.
    """

    name = "negatives"
    inputs = ("text",)
    outputs = {"negative": pa.string(), "negative_kind": pa.string()}  # noqa: RUF012 - declared, never changed
    kinds: tuple[str, ...] = KINDS
    seed: int = 0

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in KINDS:
                raise DiptychError(f"negatives: no kind '{kind}'{nearest(kind, KINDS)}")

    def compute(self, batch: pa.RecordBatch) -> Columns:
        """The outputs for the rows of ``batch``, which holds ``row``, ``id``, ``hash`` and the declared inputs."""
        made: list[tuple[str | None, str | None]] = []
        for text, own in zip(batch["text"].to_pylist(), batch["hash"].to_pylist(), strict=True):
            rng = random.Random(own ^ self.seed)
            kinds = rng.sample(self.kinds, len(self.kinds))
            candidates = ((negative(text, kind, rng), kind) for kind in kinds)  # type: ignore[arg-type]
            made.append(next(((false, kind) for false, kind in candidates if false), (None, None)))
        return {"negative": [false for false, _ in made], "negative_kind": [kind for _, kind in made]}
