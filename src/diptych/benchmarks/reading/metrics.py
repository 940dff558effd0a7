"""The published metrics of benchmarks about text in pictures."""

from __future__ import annotations

from collections.abc import Sequence

from diptych.benchmarks.answers.vqa import normalised_accuracy

RELAXED = 0.05  # how far a number may be from the right one, as a share of it


def textvqa_accuracy(answer: str, humans: Sequence[str]) -> float:
    """TextVQA's accuracy (Singh et al., arXiv:1904.08920): the mean over the ten people of min(1, equal answers of the other nine
    / 3). Unlike VQAv2's script it always normalises both sides, and before that it deletes commas and question marks and separates
    a possessive 's. Raises ValueError for fewer than four answers.
    """
    return normalised_accuracy(_plain(answer), [_plain(human) for human in humans])


def _plain(text: str) -> str:
    return text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()


def as_number(text: str) -> float | None:
    """The number that a text is, of a percentage the share; None if it is none."""
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def relaxed(answer: str, truth: str) -> bool:
    """ChartQA's relaxed correctness (Masry et al., arXiv:2203.10244, section 5.1; Methani et al., arXiv:1909.00997): a number may
    differ from the right one by 5 % of it; other texts, and any answer where the truth is 0, must be the same but for case.
    """
    given, right = as_number(answer), as_number(truth)
    if given is not None and right:
        return abs(given - right) / abs(right) <= RELAXED
    return answer.lower() == truth.lower()


def contains(answer: str, truth: Sequence[str], formula: bool = False) -> bool:
    """OCRBench's rule (Liu et al., arXiv:2305.07895): one of the right answers occurs within the answer, case and line ends aside.
    formula: of handwritten formulas, spaces do not count either, and case does.
    """

    def form(text: str) -> str:
        """How texts are compared."""
        text = text.strip().replace("\n", " ")
        return text.replace(" ", "") if formula else text.lower()

    return any(form(right) in form(answer) for right in truth)
