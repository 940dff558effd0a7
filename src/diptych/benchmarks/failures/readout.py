"""What a model knows and does not say: for one question about pictures, the accuracy of a linear readout of its tower, its
connector and each layer of its language model, next to that of its answer (after Fu et al. 2025, Hidden in plain sight,
arXiv:2506.08008).

Shapes: N pictures, C possible answers, D width of a stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from diptych.benchmarks.statistics import Interval, mean_interval, paired_test
from diptych.core.capabilities import Image
from diptych.core.errors import DiptychError
from diptych.core.extras import need
from diptych.data.scenes.graph import Graph, Things
from diptych.data.scenes.language import phrase
from diptych.data.sources import open_source

CHUNK = 64  # pictures at a time
QUESTIONS = {"concept": "what is in the picture", "colour": "which colour it has", "count": "how many there are"}
SCENES = "scenes:small?natural=0"  # every object has a colour, none is its habitual one


@dataclass(frozen=True)
class Question:
    """Pictures of one kind of thing each, with the right answer's number, int [N], and for each picture a caption for every
    answer.
    """

    answers: list[str]
    images: list[Image]
    right: np.ndarray
    captions: list[list[str]]


@dataclass(frozen=True)
class Stage:
    """The accuracy at one place of a model on held-out pictures. against: the difference to the answer, its interval and p; None
    for the answer itself.
    """

    name: str
    accuracy: Interval
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None


def ask(question: str, n: int, split: str, address: str = SCENES) -> Question:
    """n pictures of the built-in world that show one kind of thing. DiptychError for an unknown question, or too few pictures."""
    if question not in QUESTIONS:
        raise DiptychError(f"no question '{question}'; there are: {', '.join(QUESTIONS)}")
    source: Any = open_source(address).split(split)
    world = source.world
    images: list[Image] = []
    values, captions = [], []
    every = {
        "concept": list(world.names),
        "colour": list(world.palette),
        "count": [str(k) for k in range(1, world.max_objects + 1)],
    }[question]
    for index in range(min(len(source), 40 * n)):
        if len(images) == n:
            break
        graph: Graph = source.graph(index)
        if len(graph.things) != 1 or not graph.things[0].colour:
            continue
        things = graph.things[0]
        value = str(getattr(things, question))
        if value not in every:
            continue
        images.append(source[index].image)
        values.append(every.index(value))
        captions.append([phrase(_with(things, question, a)) for a in every])
    if len(images) < n:
        raise DiptychError(f"{address}: {len(images)} pictures of one kind of thing, {n} are needed")
    return Question(every, images, np.array(values), captions)


def _with(things: Things, question: str, answer: str) -> Things:
    """The same things with another answer to the question."""
    return things._replace(**{question: int(answer) if question == "count" else answer})  # type: ignore[arg-type]


def stages_of(run: Any, images: Sequence[Image]) -> dict[str, np.ndarray]:
    """What each stage of a run makes of pictures, float32 [N, D] by name: the mean of the tower's patches, the mean of the
    connector's tokens, and after each layer of the language model the state at the last position of the picture. Of a model that
    is no run: its image vectors.
    """
    model = getattr(run, "model", None)
    if model is None or not hasattr(run, "_images"):
        return {"vectors": np.asarray(run.embed_image(images), dtype=np.float32)}
    found: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(images), CHUNK):
        with run._inference():
            p = run._images(images[start : start + CHUNK])
            made = {}
            if "vision" in model.parts:
                made["tower"] = p["image.tokens"].tokens[:, int(model.parts["vision"].extra) :].mean(1)
            if "lm" not in model.parts and model.graph.gives("image.embedding"):
                made["embedding"] = p["image.embedding"]
            if "lm" in model.parts and model.graph.gives("image.prefix"):
                made["connector"] = p["image.prefix"].mean(1)
                made |= _layers(model.parts["lm"], p["image.prefix"])
            for name, value in made.items():
                found.setdefault(name, []).append(value.float().cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _layers(lm: Any, prefix: torch.Tensor) -> dict[str, torch.Tensor]:
    """The state at the last position of a picture after each layer of a language model."""
    from diptych.models.fusion.gated import decoder_layers

    kept: dict[str, torch.Tensor] = {}

    def note(name: str) -> Any:
        """A hook that keeps the last position of what a layer gives."""

        def hook(_: Any, __: Any, out: Any) -> None:
            """Keep it."""
            kept[name] = (out[0] if isinstance(out, tuple) else out)[:, -1]

        return hook

    handles = [layer.register_forward_hook(note(f"layer {i + 1}")) for i, layer in enumerate(decoder_layers(lm.lm))]
    try:
        lm.image_hidden(prefix)
    finally:
        for handle in handles:
            handle.remove()
    return kept


def answered(run: Any, question: Question) -> np.ndarray:
    """The number of the answer whose caption a model scores highest for each picture, int [N]."""
    width = len(question.answers)
    texts = [caption for row in question.captions for caption in row]
    pairs = np.stack([np.repeat(np.arange(len(question.images)), width), np.arange(len(texts))], 1)
    unique, where = np.unique(np.array(texts), return_inverse=True)
    if "score_all" in run.capabilities or "embed_image" in run.capabilities:
        every = np.asarray(run.score(question.images, unique.tolist()))
        scores = every[pairs[:, 0], where.ravel()]
    else:
        scores = np.asarray(run.score(question.images, unique.tolist(), np.stack([pairs[:, 0], where.ravel()], 1)))
    best: np.ndarray = scores.reshape(-1, width).argmax(1)
    return best


def linear_readout(train: np.ndarray, right: np.ndarray, test: np.ndarray, regularity: float = 1.0) -> np.ndarray:
    """The answers of a multinomial logistic regression on standardised features: int [M]. regularity: sklearn's C."""
    linear = need("sklearn.linear_model", extra="adapt", what="a linear readout")
    middle, spread = train.mean(0), train.std(0) + 1e-6
    fitted = linear.LogisticRegression(C=regularity, max_iter=500).fit((train - middle) / spread, right)
    predicted: np.ndarray = fitted.predict((test - middle) / spread)
    return predicted


def compare_stages(run: Any, question: str, n: int = 400, held: int = 300, *, address: str = SCENES, seed: int = 0) -> list[Stage]:
    """The accuracy of a linear readout of each stage, fitted on ``n`` pictures of the train split, and of the model's answer, on
    ``held`` of the test split; and whether each readout differs from the answer.
    """
    if "score" not in run.capabilities:
        raise DiptychError(f"model '{run.name}' scores no texts, so it gives no answers")
    learned, judged = ask(question, n, "train", address), ask(question, held, "test", address)
    clusters = list(range(held))
    said = (answered(run, judged) == judged.right).astype(float)
    stages = []
    before, after = stages_of(run, learned.images), stages_of(run, judged.images)
    for name, features in before.items():
        hit = (linear_readout(features, learned.right, after[name]) == judged.right).astype(float)
        test = paired_test(hit, said, clusters, seed=seed)
        stages.append(Stage(name, mean_interval(hit, clusters, seed=seed), test.difference, test.low, test.high, test.p))
    return [*stages, Stage("answer", mean_interval(said, clusters, seed=seed))]
