"""Pictures and texts by which an export is compared with torch: many batches, sizes, shapes, contents and lengths.

They are the same each time. An error that only one size of batch, one length or one kind of picture shows has a group of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from diptych.core.capabilities import Image
from diptych.inference.onnx.runtime import IMAGES_AT_ONCE, TEXTS_AT_ONCE, OnnxModel

SHAPES = ((1, 1), (8, 8), (17, 300), (300, 17), (64, 64), (480, 640), (640, 480), (200, 1000))  # height, width
WORDS = "a the two red green dog house on left of and with photo small tree in sea people under light".split()  # noqa: SIM905
LENGTHS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)  # words
ODD = ("", " ", "A Photo, of a DOG!", "Ünï códe 漢字 🦊", "tab\tand\nline", "<s> [PAD] [EOS] </s>", "x" * 300, "3.14 × 2 = 6.28")


class Probe(NamedTuple):
    """Items that are embedded in one call. together: the group by which items alone and in a batch are compared."""

    what: str
    items: list[Any]
    together: bool = False


def picture(kind: int, height: int, width: int, rng: np.random.Generator) -> Image:
    """A picture of one of six kinds: noise, coarse noise, a slope, black, white, one strong colour. uint8 [height, width, 3]."""
    if kind == 0:
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if kind == 1:
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        return coarse[np.arange(height) * 4 // height][:, np.arange(width) * 4 // width]
    if kind == 2:
        slope = np.linspace(0, 255, height)[:, None, None] * np.linspace(0.2, 1, width)[None, :, None]
        return (slope * rng.uniform(0.3, 1, 3)).astype(np.uint8)
    flat = {3: [0, 0, 0], 4: [255, 255, 255]}.get(kind, list(255 * rng.integers(0, 2, 3)))
    return np.full((height, width, 3), flat, dtype=np.uint8)


KINDS = ("noise", "coarse noise", "a slope", "black", "white", "one colour")


def picture_probes(model: OnnxModel, images: Sequence[Image] = ()) -> Iterator[Probe]:
    """Groups of pictures. images: pictures of the user's data, which are mixed in."""
    rng = np.random.default_rng(0)
    own: tuple[int, int] = (model.facts["size"][0], model.facts["size"][1])

    def mixed(n: int) -> list[Image]:
        """Pictures of all kinds and shapes, and of the user's, in turn."""
        shapes = [own, *SHAPES]
        made = []
        for i in range(n):
            height, width = shapes[int(rng.integers(len(shapes)))]
            made.append(picture(i % 3, height, width, rng))
        return [images[i % len(images)] if len(images) and i % 2 else x for i, x in enumerate(made)]

    for n in (1, 2, 7, IMAGES_AT_ONCE, 2 * IMAGES_AT_ONCE + 1):
        yield Probe(f"batch of {n}", mixed(n), n == 7)
    for height, width in (own, *SHAPES):
        yield Probe(f"{height} × {width} pixels", [picture(kind, height, width, rng) for kind in (0, 1, 2)])
    for kind, name in enumerate(KINDS):
        yield Probe(name, [picture(kind, height, width, rng) for height, width in (own, (300, 200))])
    if len(images):
        yield Probe("the data", list(images[:64]))


def text_probes(model: OnnxModel, words: Sequence[str] = (), captions: Sequence[str] = ()) -> Iterator[Probe]:
    """Groups of texts, from no word to more than fit. words, captions: of the user's data."""
    rng, known = np.random.default_rng(1), [*WORDS, *words]

    def of(n: int) -> str:
        """A text of n words."""
        return " ".join(known[i] for i in rng.integers(len(known), size=n))

    for n in (1, 2, 7, TEXTS_AT_ONCE, 2 * TEXTS_AT_ONCE + 1):
        yield Probe(f"batch of {n}", [of(int(rng.integers(0, 24))) for _ in range(n)], n == 7)
    for n in LENGTHS:
        items = [of(n) for _ in range(3)]
        tokens = [int(model.texts([item])[1].sum()) for item in items]
        yield Probe(f"{n} words, {min(tokens)} to {max(tokens)} tokens", items)
        if min(tokens) >= model.texts.length:
            break
    yield Probe("odd texts", list(ODD))
    if len(captions):
        yield Probe("the data", list(captions[:256]))
