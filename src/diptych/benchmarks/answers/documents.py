"""Questions about texts in pictures: ANLS of DocVQA (Mathew et al., arXiv:2007.00398), ST-VQA and InfographicVQA."""

from __future__ import annotations

from collections.abc import Sequence

ANLS_THRESHOLD = 0.5  # a similarity below it counts 0


def anls(answer: str, truth: Sequence[str]) -> float:
    """The similarity of an answer to the most similar right one, 0 to 1: 1 − edit distance / length of the longer text, and 0 if
    that is below 0.5 (average normalised Levenshtein similarity, Biten et al., arXiv:1905.13648, eq. 1; 0.5 itself counts, as in
    the official script). Case and runs of space do not matter. Raises ValueError without a right answer.
    """
    if not truth:
        raise ValueError("ANLS needs at least one right answer")
    given = _plain(answer)
    best = max(_similarity(given, _plain(t)) for t in truth)
    return best if best >= ANLS_THRESHOLD else 0.0


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _similarity(a: str, b: str) -> float:
    longer = max(len(a), len(b))
    return 1 - edit_distance(a, b) / longer if longer else 1.0


def edit_distance(a: str, b: str) -> int:
    """The least number of signs to insert, delete or replace to turn one text into the other (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]
