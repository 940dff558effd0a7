"""Search over sets of prompts: which templates, and which sentences of each class, name the training pictures best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diptych.choose.ways.base import Support, Way
from diptych.core.arrays import unit_rows
from diptych.inference.heads import Head, Linear

Masks = np.ndarray  # sets of prompts, bool [K, P]
ROOM = 1 << 24  # logits that are held at once


def fitness(logits: np.ndarray, y: np.ndarray, weight: float) -> np.ndarray:
    """Accuracy − weight · cross-entropy (nats) of each of K classifiers [K]; logits [K, N, C]."""
    top = logits.max(-1, keepdims=True)
    right = np.take_along_axis(logits, np.broadcast_to(y[None, :, None], (*logits.shape[:2], 1)), 2)[..., 0]
    loss = top[..., 0] + np.log(np.exp(logits - top).sum(-1)) - right
    result: np.ndarray = (logits.argmax(-1) == y).mean(1) - weight * loss.mean(1)
    return result


def in_parts(score: Callable[[Masks], np.ndarray], masks: Masks, logits: int) -> np.ndarray:
    """``score(masks)`` of so many sets at a time that their logits fit into ``ROOM``; logits: of one set."""
    step = max(1, ROOM // max(1, logits))
    return np.concatenate([score(masks[i : i + step]) for i in range(0, len(masks), step)])


def candidates(best: Masks, step: int, number: int, able: np.ndarray, rng: np.random.Generator) -> Masks:
    """New sets from the best ones: to each, ``number`` times, a prompt is added, taken away, and replaced; as many sets again are
    drawn anew, of step + 2 prompts (mutation); and twice as many hold what all of the best have and a random part of the rest,
    each prompt weighted by how many of them have it (crossover).

    best [K, P]; able [P]: prompts that may change at all. Prompts that are not stay as they are in every set.
    """
    new = []
    for own in best:
        for _ in range(number):
            inside, outside = np.flatnonzero(own & able), np.flatnonzero(~own & able)
            added, removed, replaced = own.copy(), own.copy(), own.copy()
            if len(outside):
                added[rng.choice(outside)] = True
                if len(inside):
                    replaced[rng.choice(inside)], replaced[rng.choice(outside)] = False, True
            if own.sum() > 2 and len(inside):
                removed[rng.choice(inside)] = False
            new += [added, removed, replaced]
    for _ in range(number):
        drawn = best[0] & ~able
        drawn[rng.choice(np.flatnonzero(able), min(step + 2, able.sum()), replace=False)] = True
        new.append(drawn)
    votes = best.sum(0)
    common, some = votes == len(best), np.flatnonzero((votes > 0) & (votes < len(best)))
    for _ in range(2 * number if len(some) else 0):
        share = votes[some] / votes[some].sum()
        crossed = common.copy()
        crossed[rng.choice(some, rng.integers(1, len(some), endpoint=True), replace=False, p=share)] = True
        new.append(crossed)
    return np.stack(new)


def evolve(
    start: Masks, score: Callable[[Masks], np.ndarray], able: np.ndarray, *, steps: int, keep: int, number: int, seed: int
) -> np.ndarray:
    """The set of greatest score [P] of all that were tried; of equal ones, the first. No set is tried twice."""
    rng = np.random.default_rng(seed)
    tried = {mask.tobytes() for mask in start}
    sets, scores = start, score(start)
    for step in range(steps):
        best = sets[np.argsort(-scores, kind="stable")[:keep]]
        new = [mask for mask in candidates(best, step, number, able, rng) if mask.any()]
        new = [m for m in {m.tobytes(): m for m in new}.values() if m.tobytes() not in tried]
        if not new:
            break
        tried |= {mask.tobytes() for mask in new}
        sets, scores = np.concatenate([sets, np.stack(new)]), np.concatenate([scores, score(np.stack(new))])
    winner: np.ndarray = sets[int(np.argmax(scores))]
    return winner


def confusable(vectors: np.ndarray, groups: int, seed: int) -> list[np.ndarray]:
    """Classes in groups by k-means of their unit vectors [C, E] (20 rounds, starts far from each other); groups of one are left
    out.
    """
    rng = np.random.default_rng(seed)
    centres = vectors[[int(rng.integers(len(vectors)))]]
    while len(centres) < min(groups, len(vectors)):
        centres = np.concatenate([centres, vectors[[int((vectors @ centres.T).max(1).argmin())]]])
    label = np.zeros(len(vectors), dtype=int)
    for _ in range(20):
        label = (vectors @ centres.T).argmax(1)
        centres = np.stack(
            [unit_rows(vectors[label == g].mean(0)) if (label == g).any() else centres[g] for g in range(len(centres))]
        )
    return [members for g in range(len(centres)) if len(members := np.flatnonzero(label == g)) > 1]


@dataclass(frozen=True)
class PromptSearch(Way):
    """After ProAPO (Qu et al. 2025, arXiv:2502.19844), on the vectors of given prompts: an evolution first of the set of templates,
    the same for all classes, then of the sentences of each class that join them, in groups of classes that are alike. A class is
    the mean vector of its prompts.

    Checked with the authors' code: the five operations, 4 best sets, 8 new ones of each kind (mutation here 8, crossover 16),
    10 rounds, the fitness (accuracy − weight · cross-entropy; their weights amount to 100, with top-5 accuracy), at most 4 groups.
    Left out: synonyms of the names, prompts that a language model writes, sampling of operations by their success. The search
    sees the training pictures alone; cross-validation judges it from outside.
    Each round judges about 120 sets on all training pictures and classes: minutes for 1,000 classes.
    weight: of the cross-entropy. steps: rounds; 0: all templates, zero-shot.
    """

    name = "proapo"
    about = "evolution of the set of templates, then of each class's sentences"
    cite = "after Qu et al. 2025, arXiv:2502.19844"
    needs_text = True
    weight: float = 100.0
    steps: int = 10
    keep: int = 4
    number: int = 8
    groups: int = 4

    @classmethod
    def grid(cls, support: Support) -> Sequence[Mapping[str, Any]]:
        """The cross-entropy first, or the accuracy; no search."""
        return [{"weight": 100.0}, {"weight": 0.1}, {"steps": 0}]

    def fit(self, support: Support) -> Head:
        """Logits are scaled cosines with the mean vectors of the chosen prompts."""
        templates, sentences = self.search(support)
        vectors = self.vectors(support, templates, sentences)
        return Linear(support.scale * vectors, np.zeros(support.classes), open=True)

    @staticmethod
    def vectors(support: Support, templates: np.ndarray, sentences: Sequence[np.ndarray]) -> np.ndarray:
        """Unit class vectors [C, E] of the chosen templates [T] and sentences of each class [T_c]."""
        assert support.prompts is not None
        described = support.described or [support.prompts[:0, 0]] * support.classes
        rows = [np.concatenate([p[templates], d[s]]) for p, d, s in zip(support.prompts, described, sentences, strict=True)]
        return unit_rows(np.stack([r.mean(0) for r in rows]))

    def search(self, support: Support) -> tuple[np.ndarray, list[np.ndarray]]:
        """Which templates [T], and which sentences of each class [T_c], as booleans."""
        support.texts  # noqa: B018 - an error for a model without texts
        assert support.prompts is not None
        count = support.prompts.shape[1]
        templates = np.ones(count, dtype=bool)
        described = support.described or tuple(support.prompts[:0, 0] for _ in support.names)
        none = [np.zeros(len(own), dtype=bool) for own in described]
        if not self.steps or not len(support.y):
            return templates, none
        options = {"steps": self.steps, "keep": self.keep, "number": self.number}
        if count > 1:
            start = np.concatenate([templates[None], np.eye(count, dtype=bool)])  # all of them: zero-shot; and each alone
            every = np.ones(count, dtype=bool)
            templates = evolve(start, self._score(support, support.prompts), every, **options, seed=support.seed)
        chosen = [np.concatenate([templates, own]) for own in none]
        texts = [np.concatenate(pair) for pair in zip(support.prompts, described, strict=True)]
        for members in confusable(support.texts, self.groups, support.seed) if sum(map(len, described)) else []:
            flat = np.concatenate([chosen[c] for c in members])
            able = np.concatenate([np.arange(len(chosen[c])) >= count for c in members])
            if not able.any():
                continue
            single = np.eye(len(flat), dtype=bool)[able] | flat
            start = np.concatenate([flat[None], single, (flat | able)[None]])  # none of the sentences, each, all
            score = self._group_score(support, texts, chosen, members)
            won = evolve(start, score, able, **options, seed=support.seed)
            for c, own in zip(members, np.split(won, np.cumsum([len(chosen[c]) for c in members])[:-1]), strict=True):
                chosen[c] = own
        return templates, [own[count:] for own in chosen]

    def _score(self, support: Support, prompts: np.ndarray) -> Callable[[Masks], np.ndarray]:
        """Of sets of templates [K, T]."""
        cosines = np.tensordot(support.x, prompts, (1, 2))  # [N, C, T]
        gram = np.einsum("cte,cse->cts", prompts, prompts).astype(np.float64)

        def score(masks: Masks) -> np.ndarray:
            """The fitness of each choice of texts, [K]."""
            m = masks.astype(np.float32)
            norm = np.sqrt(np.maximum(np.einsum("kt,cts,ks->kc", m, gram, m, optimize=True), 1e-24))
            return fitness(support.scale * (np.moveaxis(cosines @ m.T, 2, 0) / norm[:, None]), support.y, self.weight)

        return lambda masks: in_parts(score, masks, cosines.shape[0] * cosines.shape[1])

    def _group_score(
        self, support: Support, texts: Sequence[np.ndarray], chosen: Sequence[np.ndarray], members: np.ndarray
    ) -> Callable[[Masks], np.ndarray]:
        """Of sets of prompts of the group's classes, one after the other [K, ΣP]; the other classes as chosen so far."""
        vectors = unit_rows(np.stack([own[mask].mean(0) for own, mask in zip(texts, chosen, strict=True)]))
        fixed = support.scale * support.x.astype(np.float64) @ vectors.T
        ends = np.cumsum([0, *(len(chosen[c]) for c in members)])
        x = support.x.astype(np.float64)

        def score(masks: Masks) -> np.ndarray:
            """The fitness of each choice of texts, [K]."""
            logits = np.repeat(fixed[None], len(masks), 0)
            for c, begin, end in zip(members, ends[:-1], ends[1:], strict=True):
                rows = unit_rows(masks[:, begin:end].astype(np.float64) @ texts[c])  # [K, E], of the same direction as the mean
                logits[:, :, c] = support.scale * rows @ x.T
            return fitness(logits, support.y, self.weight)

        return lambda masks: in_parts(score, masks, fixed.size)
