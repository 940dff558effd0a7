"""UNEM: expectation–maximisation over all test images together, its parameters learned by unrolling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from diptych.choose.ways.base import Support, Way
from diptych.core.arrays import unit_rows
from diptych.inference.heads import Head
from diptych.inference.unrolled import Unrolled, dirichlet, gaussian


@dataclass(frozen=True)
class Tasks:
    """Validation tasks drawn from the training pictures, each with labelled images and queries. B tasks.

    support and query: rows of the images [B, S], [B, N]; counts: 1 for queries that belong to the task, 0 for the rest [B, N].
    """

    support: np.ndarray
    query: np.ndarray
    counts: np.ndarray


def draw_tasks(y: np.ndarray, tasks: int, present: float, seed: int) -> Tasks | None:
    """A third of the images of each class, one at least, are queries, the rest labelled. The queries that belong to a task are
    those of a random part of the classes, between ``present`` of them and all. A class with one image has no queries. None if no
    class has two images.
    """
    rng = np.random.default_rng(seed)
    members = {int(c): np.flatnonzero(y == c) for c in np.unique(y)}
    queries = {c: max(1, round(len(rows) / 3)) if len(rows) > 1 else 0 for c, rows in members.items()}
    able = [c for c, n in queries.items() if n]
    if not able:
        return None
    support, query, counts = [], [], []
    for _ in range(tasks):
        drawn = {c: rng.permutation(rows) for c, rows in members.items()}
        number = rng.integers(max(1, math.ceil(present * len(able))), len(able), endpoint=True)
        chosen = set(rng.choice(able, number, replace=False).tolist())
        support.append(np.concatenate([rows[queries[c] :] for c, rows in drawn.items()]))
        query.append(np.concatenate([drawn[c][: queries[c]] for c in able]))
        counts.append(np.concatenate([np.full(queries[c], float(c in chosen)) for c in able]))
    return Tasks(np.stack(support), np.stack(query), np.stack(counts))


@dataclass(frozen=True)
class Unem(Way):
    """UNEM with Dirichlet classes over the probabilities by zero-shot (Zhou et al. 2025, arXiv:2412.16739; ``inference/unrolled``).

    The balance γ and the temperature of each iteration, and the sharpness of the features, are learned on tasks drawn from the
    training pictures, as the authors learn them on a validation set; the parameters with the least loss are kept, the first
    included. From their code: 10 iterations, Adam, rate 0.5 halved at half time, features at temperature 30, γ that starts at the
    ratio of all classes to those of a task. The loss here is −log of the assignment of the true class (their code takes a softmax
    of the assignments once more); tasks are 8 and steps 30 (theirs: 100 tasks, about 500 steps), so
    the rate of the sharpness is four times the others'. With few pictures of a class the parameters are learned from fewer still;
    then it can be worse than zero-shot, which cross-validation shows.
    layers: iterations. shared: one γ and temperature for all of them, not one each. present: the least share of the classes that
    are in the queries of a task. steps 0: nothing is learned.
    """

    name = "unem"
    about = "EM over all test images together (Dirichlet), its balance learned by unrolling"
    cite = "Zhou et al. 2025, arXiv:2412.16739"
    needs_text = True
    transductive = True
    form: ClassVar[str] = "dirichlet"
    rate: ClassVar[float] = 0.5
    layers: int = 10
    shared: bool = False
    tasks: int = 8
    present: float = 0.5
    steps: int = 30

    def fit(self, support: Support) -> Head:
        """A head that keeps the images; the iterations run when the test images are there."""
        texts = self.texts(support)
        sharpness, balance, temperature = self.learn(support, texts)
        return Unrolled(support.x, support.onehot, texts, balance, temperature, sharpness, self.form)

    def texts(self, support: Support) -> np.ndarray:
        """What the form needs of the names [C, E]."""
        return support.texts

    def first(self, support: Support) -> tuple[float, float, float]:
        """Where sharpness, balance and temperature start."""
        return 30.0, 2 / (1 + self.present), 1.0

    def assigned(self, x: Tensor, onehot: Tensor, texts: Tensor, tasks: Tasks, parameters: list[Tensor]) -> Tensor:
        """log of the assignments of the tasks' queries [B, N, C]."""
        cosines = x @ texts.T
        chosen, queries, counts = torch.tensor(tasks.support), torch.tensor(tasks.query), torch.tensor(tasks.counts)
        return dirichlet(cosines[chosen], onehot[chosen], cosines[queries], *self._layers(parameters), weight=counts)

    def _layers(self, parameters: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        sharpness, balance, temperature = parameters
        return sharpness, balance.expand(self.layers), temperature.expand(self.layers)

    def learn(self, support: Support, names: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Sharpness, balance [L] and temperature [L]."""
        size = 1 if self.shared else self.layers
        start = self.first(support)
        parameters = [
            torch.tensor(value, dtype=torch.float64).requires_grad_()
            for value in (start[0], np.full(size, start[1]), np.full(size, start[2]))
        ]
        tasks = draw_tasks(support.y, self.tasks, self.present, support.seed) if self.steps else None
        best: tuple[float, list[np.ndarray]] = (math.inf, [p.detach().numpy().copy() for p in parameters])
        if tasks is not None:
            x, onehot, texts = (torch.tensor(a, dtype=torch.float64) for a in (support.x, support.onehot, names))
            if len(x) + len(texts) < x.shape[1]:  # only the span of the vectors counts: the same products in fewer dimensions
                basis = torch.linalg.qr(torch.cat([x, texts]).T).Q
                x, texts = x @ basis, texts @ basis
            truth, counts = torch.tensor(support.y[tasks.query]), torch.tensor(tasks.counts)
            groups: list[dict[str, Any]] = [{"params": parameters[:1], "lr": 4 * self.rate}, {"params": parameters[1:]}]
            optimizer = torch.optim.Adam(groups, lr=self.rate)
            half = torch.optim.lr_scheduler.StepLR(optimizer, max(1, self.steps // 2), 0.5)
            for _ in range(self.steps):
                optimizer.zero_grad()
                assigned = self.assigned(x, onehot, texts, tasks, parameters)
                loss = -(assigned.gather(-1, truth[..., None])[..., 0] * counts).sum() / counts.sum()
                if float(loss.detach()) < best[0]:
                    best = float(loss.detach()), [p.detach().numpy().copy() for p in parameters]
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                half.step()
        sharpness, balance, temperature = best[1]
        return float(sharpness), np.broadcast_to(balance, self.layers).copy(), np.broadcast_to(temperature, self.layers).copy()


@dataclass(frozen=True)
class GaussianUnem(Unem):
    """UNEM with Gaussian classes of one width over the image vectors; the names are not needed.

    As the authors' code, but for the width: vectors begin at the square root of the model's scale, so that the first logits are its
    scaled cosines with the means (theirs begins at 1.3, for features of another length). Rate 0.1. A class without pictures
    begins at its name, moved by the mean difference of images and names of the others; without texts, it is never named.
    """

    name = "unem-gaussian"
    about = "EM over all test images together (Gaussian), its balance learned by unrolling"
    needs_text = False
    form: ClassVar[str] = "gaussian"
    rate: ClassVar[float] = 0.1

    def texts(self, support: Support) -> np.ndarray:
        """Where the means of classes without pictures begin, zeros for all others [C, E]."""
        start: np.ndarray = np.zeros((support.classes, support.x.shape[1]), dtype=np.float32)
        known = np.unique(support.y)
        absent = np.setdiff1d(np.arange(support.classes), known)
        if support.prompts is not None and len(absent):
            means = [support.x[support.y == c].mean(0) for c in known]
            gap = np.mean(means, axis=0) - support.texts[known].mean(0) if means else 0
            start[absent] = unit_rows(support.texts[absent] + gap)
        return start

    def first(self, support: Support) -> tuple[float, float, float]:
        """Sharpness, balance and temperature, each before the softplus."""
        return float(np.log(np.expm1(math.sqrt(support.scale)))), 1.0, 1.0

    def assigned(self, x: Tensor, onehot: Tensor, texts: Tensor, tasks: Tasks, parameters: list[Tensor]) -> Tensor:
        """log of the assignments of the tasks' queries [B, N, C]."""
        chosen, queries, counts = torch.tensor(tasks.support), torch.tensor(tasks.query), torch.tensor(tasks.counts)
        known = (onehot.sum(0) > 0) | (texts.abs().sum(1) > 0)
        layers = self._layers(parameters)
        return gaussian(x[chosen], onehot[chosen], x[queries], texts, *layers, weight=counts, known=known)
