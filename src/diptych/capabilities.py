"""What a trained model can do. Evaluation, search and serving know these names and never a class of model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

Image = np.ndarray  # uint8 [height, width, 3], RGB, any size


@runtime_checkable
class Model(Protocol):
    """A model of ours or of others. ``capabilities`` names the methods that work; the others raise ``DiptychError``."""

    name: str
    capabilities: frozenset[str]

    def embed_image(self, images: Sequence[Image]) -> np.ndarray:
        """Unit vectors, float32 [N, E]."""
        ...

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors, float32 [N, E]."""
        ...

    def score(self, images: Sequence[Image], texts: Sequence[str], pairs: np.ndarray | None = None) -> np.ndarray:
        """How well each text fits each image, float32 [N, M]; higher fits better.

        With ``pairs`` (int [P, 2] of image and text indices) only those, float32 [P]. A similarity, a matching
        log-odds or log P(text | image) per text: comparable over texts for one image and, up to the text's
        own likelihood, over images for one text.
        """
        ...

    def generate(self, images: Sequence[Image], prompt: str = "", max_tokens: int = 32) -> list[str]:
        """One text per image, greedy."""
        ...

    def loglikelihood(self, images: Sequence[Image], texts: Sequence[str]) -> np.ndarray:
        """log P(text | image) in nats, summed over the text's tokens, for aligned pairs, float32 [N]."""
        ...


class FunctionModel:
    """A plain function as a model: ``FunctionModel("mine", score=lambda images, texts: ...)``.

    ``functions`` maps capability names to callables of the signatures above; ``score`` may ignore ``pairs``, and is
    derived from the embeddings when these are given instead.
    """

    def __init__(self, name: str, **functions: Callable[..., Any]):
        self.name = name
        self.capabilities: frozenset[str] = frozenset(functions)
        if {"embed_image", "embed_text"} <= set(functions):
            self.capabilities |= {"score"}
        self._functions = functions

    def _call(self, name: str, *args: Any) -> Any:
        if name not in self._functions:
            from diptych.errors import DiptychError

            raise DiptychError(f"model '{self.name}' cannot {name}; it can: {', '.join(sorted(self.capabilities))}")
        return self._functions[name](*args)

    def embed_image(self, images: Sequence[Image]) -> np.ndarray:
        return np.asarray(self._call("embed_image", images), dtype=np.float32)

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        return np.asarray(self._call("embed_text", texts), dtype=np.float32)

    def score(self, images: Sequence[Image], texts: Sequence[str], pairs: np.ndarray | None = None) -> np.ndarray:
        if "score" in self._functions:
            matrix = np.asarray(self._call("score", images, texts), dtype=np.float32)
        else:
            matrix = self.embed_image(images) @ self.embed_text(texts).T
        return matrix if pairs is None else matrix[pairs[:, 0], pairs[:, 1]]

    def generate(self, images: Sequence[Image], prompt: str = "", max_tokens: int = 32) -> list[str]:
        return list(self._call("generate", images, prompt, max_tokens))

    def loglikelihood(self, images: Sequence[Image], texts: Sequence[str]) -> np.ndarray:
        return np.asarray(self._call("loglikelihood", images, texts), dtype=np.float32)
