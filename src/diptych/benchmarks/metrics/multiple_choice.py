"""One right option among several: plain, circular (MMBench, Liu et al., arXiv:2307.06281), and MME (Fu et al., arXiv:2306.13394)."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from diptych.benchmarks.metrics.ranking import lowest_if_not_finite

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def parse_choice(text: str, options: Sequence[str]) -> int | None:
    """The index of the option that a text names: by letter (``B``, ``(b)``, ``B. a cat``, ``**B**``, ``The answer is B``), or by being,
    or naming alone, the text of one option. None if it names none or several; never a guess.
    """
    letters, said = (
        LETTERS[: len(options)],
        re.sub(r"""[*`"“”‘’]|__|^'|'$""", "", text.strip()).strip(),
    )  # Markdown, quotation marks
    start = re.match(rf"\(?([{letters}{letters.lower()}])(?:[).:,]|\s*$)", said)
    if start:
        return letters.index(start[1].upper())
    # a small letter before a word is an article: "the answer is a dog"
    letter = rf"[{letters}]\b|[{letters.lower()}](?=\s*(?:$|[).:,]|or\b|and\b))"
    told = set(re.findall(rf"\b(?i:answer|option|choice)\b(?:\s+(?i:is))?\s*:?\s*\(?({letter})", said))
    told |= set(re.findall(rf"\(([{letters}{letters.lower()}])\)", said))
    if told:
        named = {letter.upper() for letter in told}
        return letters.index(named.pop()) if len(named) == 1 else None
    plain = _plain(said)
    same = [i for i, option in enumerate(options) if _plain(option) == plain]
    if same:
        return same[0] if len(same) == 1 else None
    inside = [i for i, option in enumerate(options) if _plain(option) and re.search(rf"\b{re.escape(_plain(option))}\b", plain)]
    return inside[0] if len(inside) == 1 else None


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def choice_credit(scores: np.ndarray, answer: int) -> float:
    """1 if the right option has the highest score alone, 1/m in an m-way tie at the top, else 0."""
    scores = lowest_if_not_finite(scores)
    best = scores == scores.max()
    return float(best[answer] / best.sum())


def parsed_credit(parsed: int | None, answer: int) -> float:
    """An answer that could not be parsed earns nothing; the band says what it might have."""
    return float(parsed == answer)


def circular(credits: Sequence[float], questions: Sequence[Hashable]) -> dict[Hashable, float]:
    """{question: credit}: right only if every rotation of its options was answered right (the smallest of their credits).

    Every rotation of a k-way tie shares it, so the chance of a scorer without an opinion is 1/k, as it is for one fixed
    order; who guesses anew for each rotation gets k^−k.
    """
    found: dict[Hashable, float] = {}
    for credit, question in zip(credits, questions, strict=True):
        found[question] = min(found.get(question, 1.0), credit)
    return found


def mme_counts(credits: Sequence[float], images: Sequence[Hashable]) -> tuple[list[Hashable], np.ndarray]:
    """The images and, per image, questions asked, questions right, images (1), images with all right; float [I, 4]."""
    of: dict[Hashable, list[float]] = {}
    for credit, image in zip(credits, images, strict=True):
        of.setdefault(image, []).append(credit)
    rows = [[len(c), sum(c), 1, math.prod(c)] for c in of.values()]  # two ties are two coins: all right by a product
    return list(of), np.array(rows, dtype=np.float64).reshape(-1, 4)


def mme_of_counts(sums: np.ndarray) -> np.ndarray:
    """100 · (accuracy + accuracy⁺) of column sums [..., 4]: out of 200."""
    asked, right, images, whole = np.moveaxis(np.asarray(sums, dtype=np.float64), -1, 0)
    return 100 * (right / np.maximum(asked, 1) + whole / np.maximum(images, 1))


def mme(credits: Sequence[float], images: Sequence[Hashable], subtasks: Sequence[str]) -> Mapping[str, dict[str, float]]:
    """{subtask: accuracy, accuracy_plus (share of images with both questions right), score out of 200}."""
    found = {}
    for name in dict.fromkeys(subtasks):
        mine = [i for i, s in enumerate(subtasks) if s == name]
        _, counts = mme_counts([credits[i] for i in mine], [images[i] for i in mine])
        asked, right, n, whole = counts.sum(0)
        found[name] = {"accuracy": right / asked, "accuracy_plus": whole / n, "score": float(mme_of_counts(counts.sum(0)))}
    return found
