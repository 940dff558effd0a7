"""ConSE (Norouzi et al. 2014, arXiv:1312.5650): images and texts in the space of a sentence encoder, without any training.

An image lies where the sentence vectors of its likeliest classes lie. Shapes: B batch, C classes, E width of the sentence encoder.
"""

from __future__ import annotations

import contextlib
import string
from collections.abc import Sequence
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.core.errors import DiptychError, nearest
from diptych.core.files import write_atomically
from diptych.data.storage.cache import cache_directory, size_limit

CLASSES_FILE = Path(__file__).parent / "imagenet_classes.tsv"
# Chosen on photographs with captions, by cross-validation (python -m bench.conse): docs/measured.md.
TEMPLATE = "a photo of a {name}, {kind}"
LIKELIEST = 50
TEMPERATURE = 2.0
RESOLUTION = 256


class ImageClass(NamedTuple):
    """A class of ImageNet: its synset in WordNet 3.0, its names, the usual one first, and what kind of thing it is."""

    synset: str
    names: tuple[str, ...]
    kind: str


@cache
def imagenet_classes() -> tuple[ImageClass, ...]:
    """The 1,000 classes of ImageNet (ILSVRC 2012) in the order of the logits of networks that learned them."""
    lines = CLASSES_FILE.read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    return tuple(ImageClass(synset, tuple(names.split(", ")), kind) for synset, names, kind in rows)


def class_texts(template: str = TEMPLATE) -> list[str]:
    """The text of each class: ``template`` with {name} (its usual name), {names} (all of them) and {kind} filled in.

    Raises DiptychError for a template with anything else in braces, or with nothing.
    """
    known, may = ("name", "names", "kind"), "it may hold {name}, {names} and {kind}"
    try:
        used = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise DiptychError(f"template '{template}': {error}; {may}") from None
    for field in used:
        if field not in known:
            raise DiptychError(f"template '{template}': there is no {{{field}}}{nearest(field, known)}; {may}")
    if not {"name", "names"} & set(used):
        raise DiptychError(f"template '{template}' gives classes the same text; it must hold {{name}} or {{names}}")
    return [template.format(name=c.names[0], names=", ".join(c.names), kind=c.kind) for c in imagenet_classes()]


def class_vectors(encoder: Any, template: str = TEMPLATE) -> Tensor:
    """The sentence vectors of the classes, unit length, float32 [C, E]. They are computed once and kept in the user's cache.

    encoder: ``embed(texts)`` gives sentence vectors [N, E], as ``MiniLM`` does.
    """
    texts = class_texts(template)
    place = cache_directory() / "classes" / f"{blake2b(chr(10).join(texts).encode(), digest_size=16).hexdigest()}.npy"
    probes = [0, len(texts) // 2]
    try:
        kept = torch.from_numpy(np.load(place, allow_pickle=False))
        fresh = _vectors(encoder, [texts[i] for i in probes])
        if kept.shape == (len(texts), fresh.shape[1]) and torch.allclose(kept[probes], fresh, atol=1e-4):
            return kept
    except (OSError, ValueError, EOFError):  # none, or damaged
        pass
    made = _vectors(encoder, texts)
    if size_limit():
        with contextlib.suppress(OSError):  # a home directory that cannot be written: computed again the next time
            write_atomically(place, lambda p: _save(p, made))
    return made


def _vectors(encoder: Any, texts: Sequence[str]) -> Tensor:
    device = next(iter(encoder.parameters()), torch.zeros(0)).device
    with torch.autocast(device.type, enabled=False):
        return F.normalize(encoder.embed(texts, device).float().cpu(), dim=-1)


def _save(path: Path, vectors: Tensor) -> None:
    with path.open("wb") as file:
        np.save(file, vectors.numpy(), allow_pickle=False)


class ClassSpace(nn.Module):
    """The shared space of images and texts that the texts of classes span.

    vectors: unit vectors of the classes [C, E]; likeliest: how many of an image's classes count (T in the paper);
    temperature: their logits are divided by it. The centre of the space is the mean of the class vectors. The buffers are part of
    the state, so that a saved run keeps the classes that it learned with.
    """

    vectors: Tensor
    centre: Tensor

    def __init__(self, vectors: Tensor, likeliest: int = LIKELIEST, temperature: float = TEMPERATURE):
        super().__init__()
        if not 1 <= likeliest <= len(vectors):
            raise DiptychError(f"classes: expected 1 to {len(vectors)}, got {likeliest}")
        self.likeliest, self.temperature = likeliest, temperature
        self.register_buffer("vectors", vectors)
        self.register_buffer("centre", vectors.mean(0))

    def mean(self, logits: Tensor) -> Tensor:
        """Logits [B, C] → [B, E], float32: the mean of the vectors of the likeliest classes, weighted by their probabilities, which
        sum to 1 (Norouzi et al. 2014, section 3).
        """
        values, classes = logits.float().topk(self.likeliest, dim=-1)
        with torch.autocast(logits.device.type, enabled=False):
            weights = torch.zeros_like(logits, dtype=torch.float32).scatter(-1, classes, (values / self.temperature).softmax(-1))
            return weights @ self.vectors

    def image(self, logits: Tensor) -> Tensor:
        """Logits [B, C] → unit vectors [B, E], float32: the mean, minus the centre."""
        return F.normalize(self.mean(logits) - self.centre, dim=-1)

    def text(self, sentences: Tensor) -> Tensor:
        """Sentence vectors [B, E] of any length → unit vectors [B, E], float32: their directions, minus the centre."""
        return F.normalize(F.normalize(sentences.float(), dim=-1) - self.centre, dim=-1)
