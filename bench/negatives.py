"""How much what is not wanted should count in a search: ``python -m bench.negatives INDEX``, an index of pictures with captions.

For words a and b of the captions: pictures with a and without b are to be found by "a photo of a", minus a weight times "a photo of b".
Intervals: bootstrap over the wanted words.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter

import numpy as np

from diptych.core.words import words
from diptych.data.negatives import FUNCTION_WORDS
from diptych.index.index import Index
from diptych.inference.load import load

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
LEAST = 3  # pictures with both words, and with the wanted one alone
VAGUE = frozenset(
    [
        "next",
        "near",
        "some",
        "very",
        "one",
        "two",
        "three",
        "his",
        "her",
        "its",
        "their",
        "other",
        "holding",
        "sitting",
        "standing",
        "riding",
        "looking",
        "white",
        "black",
        "red",
    ]
)


def average_precision(scores: np.ndarray, wanted: np.ndarray) -> float:
    """Of a ranking by ``scores``, float [N]; wanted: bool [N]."""
    hits = wanted[np.argsort(-scores, kind="stable")]
    return float((np.cumsum(hits)[hits] / (np.flatnonzero(hits) + 1)).mean())


def above(a: np.ndarray, b: np.ndarray) -> float:
    """How often a score of ``a`` is above one of ``b``; ties count half."""
    return float((a[:, None] > b[None]).mean() + 0.5 * (a[:, None] == b[None]).mean())


def main(path: str) -> None:
    """Prints a row for each weight."""
    index = Index.open(path)
    model = load(index.info["stamp"]["model"])
    index.check(model)
    ids = index.store.ids()
    vectors = index.store.vectors(ids).astype(np.float64)
    held = [{w.casefold() for w in words(p.caption)} for p in index.pictures(ids.tolist())]
    counts = Counter(w for some in held for w in some)
    used = sorted(w for w, n in counts.items() if 6 <= n <= 0.42 * len(ids) and len(w) > 2 and w not in {*FUNCTION_WORDS, *VAGUE})
    texts = dict(zip(used, model.embed_text([f"a photo of a {w}" for w in used]).astype(np.float64), strict=True))
    rows, wanted = [], []
    for a, b in itertools.permutations(used, 2):
        has, other = np.array([a in some for some in held]), np.array([b in some for some in held])
        alone, both = has & ~other, has & other
        if both.sum() < LEAST or alone.sum() < LEAST:
            continue
        wanted.append(a)
        scores = [vectors @ (texts[a] - w * texts[b]) for w in WEIGHTS]
        rows.append([(average_precision(s, alone), above(s[alone], s[both]), above(s[alone], s[~has])) for s in scores])
    values, groups = np.array(rows), np.unique(wanted, return_inverse=True)[1]  # [pairs, weights, 3]
    rng = np.random.default_rng(0)
    print(f"{len(values)} pairs of {groups.max() + 1} wanted words, {len(ids)} pictures, {index.info['stamp']['model']}")
    difference = values - values[:, :1]
    sums = np.stack([difference[groups == g].sum(0) for g in range(groups.max() + 1)])
    sizes = np.bincount(groups)
    draws = [rng.integers(0, len(sizes), len(sizes)) for _ in range(2000)]
    drawn = np.stack([sums[i].sum(0) / sizes[i].sum() for i in draws])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    for w, weight in enumerate(WEIGHTS):
        cells = [
            f"{values[:, w, j].mean():.3f} ({difference[:, w, j].mean():+.3f} [{low[w, j]:+.3f}, {high[w, j]:+.3f}])"
            for j in range(3)
        ]
        print(f"{weight:4.2f}  AP of a without b {cells[0]}  above a with b {cells[1]}  above others {cells[2]}")


if __name__ == "__main__":
    main(sys.argv[1])
