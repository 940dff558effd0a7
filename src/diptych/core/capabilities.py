"""What a trained model can do. Evaluation, search and serving depend on these names alone, never on a class of model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, Protocol, runtime_checkable

import numpy as np

from diptych.core.errors import DiptychError, counted

# What each capability is, after "cannot": a capability of one's own is named as it is.
IN_WORDS = {
    "score": "score how well a text fits an image",
    "score_all": "score a thousand images with a thousand texts at once",
    "score_sides": "score texts and images in a way of their own each",
    "embed_image": "turn an image into a vector",
    "embed_text": "turn a text into a vector",
    "generate": "write a text about an image",
    "decoding": "write in another way (beams, temperature …)",
    "prompt": "follow a prompt",
    "loglikelihood": "say how likely a text is for an image",
    "examples": "read examples before the image",
    "complete": "continue a text without an image",
    "draw": "draw an image from a text",
    "reconstruct": "encode an image and decode it again",
    "compose": "continue a document of texts and images",
    "classify": "name the class of an image",
    "label": "say which labels an image has",
    "locate": "say where in an image a phrase is",
}

Image = np.ndarray  # uint8 [height, width, 3], RGB, any size
Prompt = str | Sequence[str]  # one for all images, or one for each


class Example(NamedTuple):
    """An image with a text about it, shown before the image in question."""

    image: Image
    text: str
    prompt: str | None = None  # the question that ``text`` answers; None: the one asked now


Examples = Sequence[Any]  # of (image, text) or (image, text, prompt), for all images; or a list of such a list for each image


@runtime_checkable
class Model(Protocol):
    """A model of ours or of others. ``capabilities`` names the methods that work; the others raise ``DiptychError``.

    The capability "prompt" says that ``generate`` and ``loglikelihood``, where the model has them, follow a prompt; a model without
    it writes captions and accepts only the empty prompt. "decoding" says that ``generate`` also takes the settings of
    ``models.generate.Decoding`` by name (beams, top_p, …). "examples" says that ``generate``, ``loglikelihood`` and ``score`` take
    ``examples`` (``Examples``), followed by any prompt. "score_all" says that ``score`` of all pairs encodes each image and text
    only once, so that a million pairs are feasible. "score_sides" says that images are chosen for a text by another score than
    texts for an image: the method ``score_sides`` gives both (``sides_of``).
    """

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

    def generate(self, images: Sequence[Image], prompt: Prompt = "", max_tokens: int = 32, **decoding: Any) -> list[str]:
        """One text per image, greedy unless ``decoding`` says otherwise. The empty prompt asks for a caption."""
        ...

    def loglikelihood(self, images: Sequence[Image], texts: Sequence[str], prompt: Prompt = "") -> np.ndarray:
        """log P(text | image, prompt) in nats, summed over the text's tokens, for aligned pairs, float32 [N]."""
        ...


@runtime_checkable
class TwoSided(Model, Protocol):
    """A model with the capability "score_sides"."""

    def score_sides(
        self, images: Sequence[Image], texts: Sequence[str], pairs: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """``score`` by which a text is chosen for an image, and that by which an image is chosen for a text: as ``score`` each."""
        ...


def sides_of(
    model: Model, images: Sequence[Image], texts: Sequence[str], pairs: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The scores by which a text is chosen for an image, and those by which an image is chosen for a text; float [N, M], or [P] for
    ``pairs``. For most models they are the same array.
    """
    if "score_sides" in model.capabilities and isinstance(model, TwoSided):
        to_text, to_image = model.score_sides(images, texts, pairs)
        return np.asarray(to_text), np.asarray(to_image)
    scores = np.asarray(model.score(images, texts, pairs) if pairs is not None else model.score(images, texts))
    return scores, scores


@runtime_checkable
class Completing(Model, Protocol):
    """A model with the capability "complete": a language model that also reads text alone, without an image."""

    def complete(self, prompts: Sequence[str], max_tokens: int = 32, **decoding: Any) -> list[str]:
        """What follows each prompt, greedy unless ``decoding`` says otherwise."""
        ...

    def text_loglikelihood(self, texts: Sequence[str], prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """log P(text | prompt) in nats, float32 [N], the end of the text included, and the number of its tokens, int64 [N]."""
        ...


@runtime_checkable
class Drawing(Model, Protocol):
    """A model with the capabilities "draw" and, if it draws in codes, "reconstruct"."""

    def draw(
        self,
        texts: Sequence[str],
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        guidance: float = 1.0,
        seed: int = 0,
    ) -> list[Image]:
        """One image per text, code by code: the likeliest for ``temperature`` 0, else drawn at random, fixed by ``seed``.

        top_k, top_p: only among the k likeliest codes, or the likeliest that together have probability p; 0 and 1: among all.
        guidance: how strongly the text is followed (classifier-free guidance); 1: as it was learned, 0: not at all.
        """
        ...

    def reconstruct(self, images: Sequence[Image]) -> list[Image]:
        """Images encoded into the model's codes and decoded again: the best that it could draw."""
        ...


@runtime_checkable
class Composing(Model, Protocol):
    """A model with the capability "compose": it continues documents of texts and images."""

    def compose(
        self,
        documents: Sequence[Sequence[str | Image]],
        *,
        following: Literal["text", "image"] | None = None,
        most: int = 4,
        max_tokens: int = 32,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        guidance: float = 1.0,
        seed: int = 0,
    ) -> list[list[str | Image]]:
        """What follows each document, which may be empty: a list of texts and images in order.

        following: only the next text, or only the next image; None: texts and images as the model chooses, until it ends the
        document or there are ``most`` of them. max_tokens: of each text. The other settings are those of ``draw``, for both texts
        and images; ``guidance`` is for images alone.
        """
        ...


@runtime_checkable
class Classifying(Model, Protocol):
    """A model with the capability "classify": it learned classes of its own, ``classes``, in the order of the columns."""

    classes: tuple[str, ...]

    def classify(self, images: Sequence[Image]) -> np.ndarray:
        """The probability of each class, float32 [N, C]."""
        ...


class Located(NamedTuple):
    """Where a phrase is, in pixels of the image that was given. None: the model does not say so."""

    box: tuple[float, float, float, float] | None  # left, top, right, bottom
    score: float  # comparable over the phrases of one model, higher is surer
    heat: np.ndarray | None = None  # float32 [height, width], higher where the phrase is
    mask: np.ndarray | None = None  # bool [height, width]
    by: str = ""  # the way by which the model says it: box, words, heat, or the name of a map (``inference.maps``)


@runtime_checkable
class Locating(Model, Protocol):
    """A model with the capability "locate"."""

    def locate(self, images: Sequence[Image], texts: Sequence[str]) -> list[Located]:
        """Where text i is in image i, exactly one for each pair."""
        ...


def prompts_for(prompt: Prompt, n: int) -> list[str]:
    """A prompt for each of n images."""
    given = [prompt] * n if isinstance(prompt, str) else list(prompt)
    if len(given) != n:
        raise DiptychError(f"{counted(len(given), 'prompt')} for {counted(n, 'image')}; give one for all or one for each")
    return given


def examples_for(examples: Examples, n: int) -> list[list[Example]]:
    """Examples for each of n images; DiptychError for anything but pairs (or triples), or lists of them."""
    given = list(examples)
    single = [_is_example(e) for e in given]
    if all(single):
        return [[Example(*e) for e in given]] * n
    if any(single) or not all(isinstance(row, (list, tuple)) and all(map(_is_example, row)) for row in given):
        wrong = given[single.index(False)]
        raise DiptychError(f"examples: expected (image, text) pairs, one list for all images or one for each; found {_form(wrong)}")
    if len(given) != n:
        raise DiptychError(
            f"{counted(len(given), 'list')} of examples for {counted(n, 'image')}; give one list for all or one for each"
        )
    return [[Example(*e) for e in row] for row in given]


def _is_example(e: Any) -> bool:
    return isinstance(e, (tuple, list)) and len(e) in (2, 3) and isinstance(e[0], np.ndarray) and isinstance(e[1], str)


def _form(e: Any) -> str:
    if not isinstance(e, (tuple, list)):
        return type(e).__name__
    return f"({', '.join(type(x).__name__ for x in e)})"


def one_or_many(items: Any) -> Sequence[Any]:
    """The texts or images as a sequence: one text, array, Pillow image or path on its own counts as one."""
    alone = isinstance(items, str | bytes | Path) or hasattr(items, "getbands")
    if isinstance(items, np.ndarray) and items.dtype == np.uint8:
        alone = items.ndim == 2 or (items.ndim == 3 and items.shape[2] in (1, 3, 4))
    return [items] if alone else items


def all_pairs(n: int, m: int) -> np.ndarray:
    """Indices of every image with every text, int [n·m, 2]."""
    return np.stack(np.meshgrid(np.arange(n), np.arange(m), indexing="ij"), -1).reshape(-1, 2)


class Unanswered(str):
    """An answer that a model could not give: an empty text with the ``reason``. The item is kept without an answer."""

    reason: str

    def __new__(cls, reason: str) -> Unanswered:
        """The empty text with its reason."""
        made = super().__new__(cls, "")
        made.reason = reason
        return made


class Adapter:
    """Base class of adapters for models of other libraries: override the methods that the model supports, and name them in
    ``capabilities``.

    ``score`` is derived: cosines if the model embeds, else log P(text | image).
    ``key`` names weights and settings, so that results can be kept; None: unknown, everything is computed again.
    ``at_once``: how many items to ask of it before their records are written; 0: as the task does. ``generate`` may return
    ``Unanswered(reason)`` in place of a text.
    """

    name: str = "model"
    capabilities: frozenset[str] = frozenset()
    key: str | None = None
    at_once: int = 0

    def cannot(self, what: str) -> NoReturn:
        """Raise DiptychError that says what the model cannot do, and what it can."""
        raise DiptychError(f"model '{self.name}' cannot {what}; it can: {', '.join(sorted(self.capabilities))}")

    def embed_image(self, images: Sequence[Image]) -> np.ndarray:
        """Unit vectors, float32 [N, E]. DiptychError if the model does not embed images."""
        self.cannot("embed_image")

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors, float32 [N, E]. DiptychError if the model does not embed texts."""
        self.cannot("embed_text")

    def score(self, images: Sequence[Image], texts: Sequence[str], pairs: np.ndarray | None = None) -> np.ndarray:
        """Cosines if the model embeds, else log P(text given image): float32 [N, M], or [P] for ``pairs``."""
        if {"embed_image", "embed_text"} <= self.capabilities:
            matrix: np.ndarray = self.embed_image(images) @ self.embed_text(texts).T
            return matrix if pairs is None else matrix[pairs[:, 0], pairs[:, 1]]
        if "loglikelihood" not in self.capabilities:
            self.cannot("score")
        wanted = all_pairs(len(images), len(texts)) if pairs is None else np.asarray(pairs)
        result = self.loglikelihood([images[i] for i in wanted[:, 0]], [texts[j] for j in wanted[:, 1]])
        return result if pairs is not None else result.reshape(len(images), len(texts))

    def generate(self, images: Sequence[Image], prompt: Prompt = "", max_tokens: int = 32, **decoding: Any) -> list[str]:
        """One text for each image. DiptychError if the model does not generate text."""
        self.cannot("generate")

    def loglikelihood(self, images: Sequence[Image], texts: Sequence[str], prompt: Prompt = "") -> np.ndarray:
        """log P(text given image, prompt) in nats, float32 [N]. DiptychError if the model has no likelihoods."""
        self.cannot("loglikelihood")

    def complete(self, prompts: Sequence[str], max_tokens: int = 32, **decoding: Any) -> list[str]:
        """What follows each prompt, without an image. DiptychError if the model does not read text alone."""
        self.cannot("complete")

    def text_loglikelihood(self, texts: Sequence[str], prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """log P(text given prompt) in nats, float32 [N], and tokens, int64 [N]. DiptychError if the model does not read text
        alone.
        """
        self.cannot("complete")

    def draw(self, texts: Sequence[str], **how: Any) -> list[Image]:
        """One image for each text. DiptychError if the model does not draw."""
        self.cannot("draw")

    def reconstruct(self, images: Sequence[Image]) -> list[Image]:
        """Images after a round trip through the model's codes. DiptychError if it has no codes."""
        self.cannot("reconstruct")

    def compose(self, documents: Sequence[Sequence[str | Image]], **how: Any) -> list[list[str | Image]]:
        """What follows each document of texts and images. DiptychError if the model does not continue documents."""
        self.cannot("compose")

    def locate(self, images: Sequence[Image], texts: Sequence[str]) -> list[Located]:
        """Where text i is in image i. DiptychError if the model does not say where things are."""
        self.cannot("locate")


def in_words(capabilities: Iterable[str]) -> str:
    """What a model cannot do, for "it cannot …": each of these capabilities in words, once; ``"generate|score"`` is both."""
    names = dict.fromkeys(name for each in capabilities for name in each.split("|"))
    words = [IN_WORDS.get(name, name) for name in names]
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


class FunctionModel(Adapter):
    """Plain functions as a model: ``FunctionModel("mine", score=lambda images, texts: ...)``.

    ``functions`` maps capability names to callables: ``embed_image(images)``, ``embed_text(texts)``,
    ``score(images, texts)``, ``generate(images, prompts, max_tokens)`` with a prompt per image, ``locate(images, texts)`` and
    ``loglikelihood(images, texts)``, which gets ``prompts`` as a third argument if ``follows_prompts`` (default: if it
    generates). A missing ``score`` is derived as in ``Adapter``.
    """

    def __init__(self, name: str, *, follows_prompts: bool | None = None, **functions: Callable[..., Any]):
        self.name = name
        able = set(functions)
        if {"embed_image", "embed_text"} <= able or "loglikelihood" in able:
            able.add("score")
        if follows_prompts if follows_prompts is not None else "generate" in functions:
            able.add("prompt")
        self.capabilities = frozenset(able)
        self._functions = functions

    def _call(self, name: str, *args: Any) -> Any:
        if name not in self._functions:
            self.cannot(name)
        return self._functions[name](*args)

    def embed_image(self, images: Sequence[Image]) -> np.ndarray:
        """What the given function returns, as float32 [N, E]."""
        return np.asarray(self._call("embed_image", images), dtype=np.float32)

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """What the given function returns, as float32 [N, E]."""
        return np.asarray(self._call("embed_text", texts), dtype=np.float32)

    def score(self, images: Sequence[Image], texts: Sequence[str], pairs: np.ndarray | None = None) -> np.ndarray:
        """What the given function returns, or a score derived from embeddings or likelihoods: as ``Adapter.score``."""
        if "score" not in self._functions:
            return super().score(images, texts, pairs)
        matrix = np.asarray(self._call("score", images, texts), dtype=np.float32)
        return matrix if pairs is None else matrix[pairs[:, 0], pairs[:, 1]]

    def generate(self, images: Sequence[Image], prompt: Prompt = "", max_tokens: int = 32, **decoding: Any) -> list[str]:
        """What the given function returns: one text for each image."""
        if decoding:
            self.cannot("decode in another way")
        return list(self._call("generate", images, prompts_for(prompt, len(images)), max_tokens))

    def loglikelihood(self, images: Sequence[Image], texts: Sequence[str], prompt: Prompt = "") -> np.ndarray:
        """What the given function returns, as float32 [N]."""
        more = (prompts_for(prompt, len(images)),) if "prompt" in self.capabilities else ()
        return np.asarray(self._call("loglikelihood", images, texts, *more), dtype=np.float32)

    def locate(self, images: Sequence[Image], texts: Sequence[str]) -> list[Located]:
        """What the given function returns, one ``Located`` for each pair."""
        return list(self._call("locate", images, texts))
