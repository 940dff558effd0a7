"""Caption metrics as the COCO evaluation server computes them (Chen et al., arXiv:1504.00325), without Java.

``references`` {id: [texts]} and ``hypotheses`` {id: text} are plain text; ``Corpus`` tokenises them once for all metrics.
N items, R references in all; an occurrence is an n-gram in a text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np

from diptych.benchmarks.metrics.tokens import tokenise

References = Mapping[str, Sequence[str]]
Hypotheses = Mapping[str, str]
ORDERS = 4


class Corpus:
    """Generated texts with their references, as arrays: texts 0..N−1 are the hypotheses, N..N+R−1 the references."""

    def __init__(self, references: References, hypotheses: Hypotheses):
        self.ids = list(hypotheses)
        groups = [[tokenise(text) for text in references[key]] for key in self.ids]
        if not all(groups):
            raise ValueError(f"'{self.ids[[bool(g) for g in groups].index(False)]}' has no reference")
        self.made = [tokenise(hypotheses[key]) for key in self.ids]
        self.references = groups
        n = len(self.ids)
        self.item = np.concatenate([np.arange(n), np.repeat(np.arange(n), [len(g) for g in groups])])  # of each text
        texts = [*self.made, *chain.from_iterable(groups)]
        self.length = np.array([len(t) for t in texts], dtype=np.int64)
        self._grams = self._occurrences(texts)

    def _occurrences(self, texts: list[tuple[str, ...]]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """For each order: text, gram and count of every gram in every text, sorted by text and gram."""
        known: dict[str, int] = {}
        words = np.fromiter((known.setdefault(w, len(known)) for w in chain.from_iterable(texts)), np.int64, int(self.length.sum()))
        text = np.repeat(np.arange(len(texts)), self.length)
        left = np.repeat(self.length, self.length) - _places(self.length)  # words from here to the end of the text
        gram, occurrences = words, []
        for order in range(1, ORDERS + 1):
            if order > 1:  # a longer gram is a shorter one and the next word
                going = np.flatnonzero(left >= order)
                pair = gram[going] * (len(known) + 1) + words[going + order - 1]
                gram = np.full(len(words), -1)
                gram[going] = np.unique(pair, return_inverse=True)[1].ravel()
            here = left >= order
            size = int(gram.max(initial=0)) + 1
            key, count = np.unique(text[here] * size + gram[here], return_counts=True)
            occurrences.append((key // size, key % size, count))
        return occurrences

    def bleu_counts(self) -> np.ndarray:
        """Per item: hypothesis length, closest reference length, 4 × n-grams matched, 4 × n-grams made; int [N, 10].

        Corpus BLEU is a function of the column sums, so that a resample of items does not need the texts.
        """
        n = len(self.ids)
        own = self.length[:n]
        distance = np.abs(self.length[n:] - own[self.item[n:]])
        best = np.lexsort((self.length[n:], distance, self.item[n:]))  # the closest; of two equally close ones, the shorter
        first = np.searchsorted(self.item[n:][best], np.arange(n))
        closest = self.length[n:][best][first] if n else own
        matched = [self._matched(order) for order in range(ORDERS)]
        return np.stack([own, closest, *matched, *(np.maximum(0, own - k) for k in range(ORDERS))], axis=1).astype(np.int64)

    def _matched(self, order: int) -> np.ndarray:
        """Per item, the hypothesis's grams that are in a reference, each as often as in the reference that has it most often; int
        [N].
        """
        n = len(self.ids)
        text, gram, count = self._grams[order]
        size = int(gram.max(initial=0)) + 1
        ours = text < n
        where, hit = _find(self.item[text[~ours]] * size + gram[~ours], text[ours] * size + gram[ours])
        most = np.zeros(int(ours.sum()), dtype=np.int64)
        np.maximum.at(most, where[hit], count[~ours][hit])
        return np.bincount(text[ours], np.minimum(most, count[ours]), minlength=n)

    def rouge_l(self, beta: float = 1.2) -> np.ndarray:
        """ROUGE-L of each item (Lin 2004), float [N]; best precision and best recall are taken over the references separately."""
        values = np.zeros(len(self.ids))
        for i, (tokens, references) in enumerate(zip(self.made, self.references, strict=True)):
            if not tokens:
                continue
            masks = _masks(tokens)
            common = [_common(masks, len(tokens), r) for r in references]
            p = max(common) / len(tokens)
            r = max(c / max(1, len(ref)) for c, ref in zip(common, references, strict=True))
            values[i] = (1 + beta**2) * p * r / (r + beta**2 * p) if p and r else 0.0
        return values

    def cider_d(self, sigma: float = 6.0) -> np.ndarray:
        """CIDEr-D of each item (Vedantam et al., arXiv:1411.5726), float [N]; document frequencies from these references."""
        n = len(self.ids)
        of = self.item[n:]
        bigrams = np.maximum(0, self.length - 1)  # the reference code counts bigrams as the length
        penalty = np.exp(-((bigrams[:n][of] - bigrams[n:]) ** 2) / (2 * sigma**2))
        total = np.zeros(len(of))
        for text, gram, count in self._grams:
            size = int(gram.max(initial=0)) + 1
            ours = text < n
            pairs = np.sort(self.item[text[~ours]] * size + gram[~ours])
            once = pairs[np.diff(pairs, prepend=-1) > 0]  # an item's references count once
            frequency = np.bincount(once % size, minlength=size)
            weight = count * (math.log(max(1, n)) - np.log(np.maximum(1, frequency)))[gram]
            norm = np.sqrt(np.bincount(text, weight**2, minlength=len(self.item)))
            where, hit = _find(self.item[text[~ours]] * size + gram[~ours], text[ours] * size + gram[ours])
            r, h = weight[~ours][hit], weight[ours][where[hit]]
            dot = np.bincount(text[~ours][hit] - n, np.minimum(h, r) * r, minlength=len(of)).astype(np.float64)
            scale = norm[:n][of] * norm[n:]
            total += np.divide(dot, scale, out=np.zeros_like(dot), where=scale > 0)
        sums = np.bincount(of, penalty * total, minlength=n)
        return 10 * sums / ORDERS / np.bincount(of, minlength=n)


def _places(length: np.ndarray) -> np.ndarray:
    """0, 1, … within each text."""
    places: np.ndarray = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    return places


def _find(wanted: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each of ``wanted`` is in ``known``, which is sorted, and whether it is."""
    if not len(known):
        return np.zeros(len(wanted), dtype=np.int64), np.zeros(len(wanted), dtype=bool)
    where = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return where, known[where] == wanted


def _masks(tokens: Sequence[str]) -> dict[str, int]:
    """{word: a number with a bit for every position of the word}"""
    masks: dict[str, int] = {}
    for i, token in enumerate(tokens):
        masks[token] = masks.get(token, 0) | 1 << i
    return masks


def _common(masks: dict[str, int], length: int, other: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the table at a time in the bits of one number (Hyyrö 2004)."""
    row = every = (1 << length) - 1
    for token in other:
        mask = masks.get(token)
        if mask:
            both = row & mask
            row = ((row + both) | (row - both)) & every
    return length - row.bit_count()


def bleu_of_sums(sums: np.ndarray) -> np.ndarray:
    """BLEU-1..4, float [..., 4], of column sums [..., 10] of ``bleu_counts``."""
    sums = np.asarray(sums, dtype=np.float64)
    length, closest, matched, made = sums[..., 0], sums[..., 1], sums[..., 2:6], sums[..., 6:10]
    with np.errstate(divide="ignore", invalid="ignore"):
        brevity = np.minimum(0.0, 1 - closest / length)
        logs = np.cumsum(np.log(matched / made), axis=-1) / np.arange(1, 5)
        values = np.exp(brevity[..., None] + logs)
    return np.where((matched > 0).cumprod(axis=-1) > 0, values, 0.0)  # no smoothing


def caption_scores(references: References, hypotheses: Hypotheses) -> dict[str, float]:
    """bleu1..bleu4 (of the corpus, Papineni et al. 2002), and the means of rouge_l and cider."""
    corpus = Corpus(references, hypotheses)
    bleu = bleu_of_sums(corpus.bleu_counts().sum(0))
    means = {"rouge_l": _mean(corpus.rouge_l()), "cider": _mean(corpus.cider_d())}
    return {**{f"bleu{n}": float(v) for n, v in enumerate(bleu, 1)}, **means}


def _mean(values: np.ndarray) -> float:
    return math.fsum(values) / max(1, len(values))
