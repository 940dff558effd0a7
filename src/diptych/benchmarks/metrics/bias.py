"""Differences between groups of people or things: skew of what is retrieved, association, and contrast sets that differ only in the
group.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from diptych.benchmarks.metrics.ranking import lowest_if_not_finite


def top_shares(scores: np.ndarray, groups: Sequence[Hashable], k: int) -> dict[Hashable, float]:
    """{group: expected share of the k items of the highest score}; a tie at the cut is shared. ``scores`` float [N].

    Raises ValueError unless 1 <= k <= N.
    """
    scores = lowest_if_not_finite(scores)
    if not 1 <= k <= len(scores):
        raise ValueError(f"the top {k} of {len(scores)} items")
    cut = np.sort(scores)[-k]
    above, at = scores > cut, scores == cut
    weight = above + at * ((k - above.sum()) / at.sum())
    return {group: float(weight[[g == group for g in groups]].sum() / k) for group in dict.fromkeys(groups)}


def skew(
    scores: np.ndarray, groups: Sequence[Hashable], k: int, desired: Mapping[Hashable, float] | None = None
) -> dict[Hashable, float]:
    """{group: Skew@k} = ln(share in the top k / ``desired`` share, by default that of all items); −∞ for a group that is not in the
    top k (Geyik et al., arXiv:1905.01989, definition 2)."""
    if desired is None:
        desired = {group: sum(g == group for g in groups) / len(groups) for group in dict.fromkeys(groups)}
    with np.errstate(divide="ignore"):
        return {group: float(np.log(share / desired[group])) for group, share in top_shares(scores, groups, k).items()}


def max_skew(scores: np.ndarray, groups: Sequence[Hashable], k: int, desired: Mapping[Hashable, float] | None = None) -> float:
    """The largest skew of any group (Geyik et al., definition 3)."""
    return max(skew(scores, groups, k, desired).values())


def effect_size(x: np.ndarray, y: np.ndarray) -> float:
    """(mean of x − mean of y) / standard deviation of all values (n − 1), as in WEAT (Caliskan et al. 2017); NaN if all agree."""
    if not len(x) or not len(y):
        return float("nan")
    every = np.concatenate([x, y])
    deviation = every.std(ddof=1)  # of two values at least
    return float((np.mean(x) - np.mean(y)) / deviation) if deviation > 1e-12 else float("nan")


def contrast(
    scores: Sequence[float], groups: Sequence[str], sets: Sequence[Hashable]
) -> dict[tuple[str, str], dict[Hashable, float]]:
    """{(a, b): {set: score of a − score of b}} over sets in which the members differ only in the group; a < b by name.

    Without bias the differences lie around 0. Raises ValueError if a set has a group twice, or if a group is missing in it.
    """
    by_set: dict[Hashable, dict[str, float]] = {}
    for score, group, name in zip(scores, groups, sets, strict=True):
        if group in by_set.setdefault(name, {}):
            raise ValueError(f"set '{name}' has the group '{group}' twice")
        by_set[name][group] = score
    names = sorted(set(groups))
    for name, members in by_set.items():
        missing = [g for g in names if g not in members]
        if missing:
            raise ValueError(f"set '{name}' has no member of the group '{missing[0]}'")
    return {(a, b): {s: m[a] - m[b] for s, m in by_set.items()} for i, a in enumerate(names) for b in names[i + 1 :]}
