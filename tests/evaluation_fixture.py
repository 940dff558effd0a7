"""A source in memory whose truth is a table, and models that know it, ignore it, or hold no opinion."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy as np

from diptych.core.capabilities import FunctionModel
from diptych.core.sample import Sample, captioned
from diptych.data.source import BrokenItem, Group, Problem

WORDS = "amber birch cedar delta ember fjord grove heron iris jade kelp lotus maple nectar onyx pearl".split()  # noqa: SIM905
CONCEPTS = ["anchor", "bell", "castle", "drum", "engine", "feather", "guitar", "hammer"]


def picture(number: int) -> np.ndarray:
    image = np.zeros((6, 6, 3), dtype=np.uint8)
    image[0, 0] = number % 256, number // 256, 7
    return image


def phrase(number: int) -> str:
    """Five words that name a number below 16^3."""
    return f"{WORDS[number % 16]} near {WORDS[number // 16 % 16]} under {WORDS[number // 256]}"


@dataclass
class Plain:
    """Samples only."""

    size: int = 24
    broken: tuple[int, ...] = ()
    address: str = "memory:plain"
    problems: list[Problem] = field(default_factory=list)
    order: tuple[int, ...] = ()

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        number = self.order[index] if self.order else index
        if number in self.broken:
            raise BrokenItem(f"item{number}", "torn")
        return Sample(f"item{number}", image=picture(number), text=captioned([phrase(number), f"{phrase(number)} indeed"]))

    def fingerprint(self) -> str:
        return f"{self.size}-{self.broken}"

    def split(self, name: str) -> Plain:
        return self


@dataclass
class World(Plain):
    """Also groups and concepts."""

    skills: tuple[str, ...] = ("colour", "relation")
    k: int = 2

    def groups(self, skill: str, n: int) -> list[Group]:
        start = 1000 + 500 * self.skills.index(skill)
        numbers = [[start + g * self.k + i for i in range(self.k)] for g in range(min(n, 12))]
        return [Group(f"{skill}{g}", skill, [*map(picture, ns)], [*map(phrase, ns)]) for g, ns in enumerate(numbers)]

    def concepts(self) -> list[str]:
        return list(CONCEPTS)

    def concept_samples(self, n: int) -> list[tuple[np.ndarray, int]]:
        return [(picture(3000 + i), i % len(CONCEPTS)) for i in range(min(n, 30))]


def truth(image: np.ndarray) -> str:
    """What the picture shows; nothing if it is grey."""
    number = int(image[0, 0, 0]) + 256 * int(image[0, 0, 1])
    if image[0, 0, 2] != 7:
        return "nothing to be seen here"
    return CONCEPTS[(number - 3000) % len(CONCEPTS)] if number >= 3000 else phrase(number)


def _vector(key: str) -> np.ndarray:
    vector = np.random.default_rng(zlib.crc32(key.encode())).normal(size=256)
    return vector / np.linalg.norm(vector)


def _said(text: str) -> str:
    words = text.removesuffix(" indeed").split()
    return words[-1] if words[-1] in CONCEPTS else " ".join(words)


def oracle() -> FunctionModel:
    return FunctionModel(
        "oracle",
        embed_image=lambda images: np.stack([_vector(truth(i)) for i in images]),
        embed_text=lambda texts: np.stack([_vector(_said(t)) for t in texts]),
        score=lambda images, texts: np.array([[float(truth(i) == _said(t)) for t in texts] for i in images]),
        generate=lambda images, prompt, max_tokens: [truth(i) for i in images],
    )


def constant() -> FunctionModel:
    same = np.full(8, 8**-0.5)
    return FunctionModel(
        "constant",
        embed_image=lambda images: np.tile(same, (len(images), 1)),
        embed_text=lambda texts: np.tile(same, (len(texts), 1)),
        score=lambda images, texts: np.zeros((len(images), len(texts))),
        generate=lambda images, prompt, max_tokens: ["a thing"] * len(images),
    )


def text_only() -> FunctionModel:
    """Prefers some texts to others and never looks."""
    return FunctionModel(
        "text-only", score=lambda images, texts: np.tile([zlib.crc32(t.encode()) % 97 for t in texts], (len(images), 1))
    )
