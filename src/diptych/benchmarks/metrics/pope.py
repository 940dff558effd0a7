"""Yes/no questions about objects: POPE (Li et al., arXiv:2305.10355), "yes" being the positive class."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

_YES, _NO = frozenset(["yes", "yeah", "yep"]), frozenset(["no", "not", "nope"])
_UNSURE = re.compile(r"(?:n't|\bnot) (?:\w+ )?(?:know|sure|certain|clear|tell|say|determine)\b")
METRICS = ("accuracy", "precision", "recall", "f1", "yes_ratio")


def parse_yes_no(text: str) -> bool | None:
    """The answer of a text's first sentence; None if it says neither or both (``Yes and no``), never a guess.

    "Isn't" and its like count as no, "I don't know" and "not sure" as neither.
    """
    words = re.findall(r"[a-z']+", re.split(r"[.!?\n]", text.strip(), maxsplit=1)[0].lower().replace("’", "'"))
    yes = any(w in _YES for w in words)
    no = any(w in _NO or w.endswith("n't") for w in words)
    if words and words[0] in _YES | _NO and not (yes and no and "and" in words[:3]):
        return words[0] in _YES  # "No, there is not"; "Yes, but it is not red"
    if _UNSURE.search(" ".join(words)):
        return None
    return yes if yes != no else None


def published_yes_no(text: str) -> bool:
    """The rule of POPE's own script: no if the first sentence has the word No, no or not; everything else is yes."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def pope_counts(answers: Sequence[bool | None], labels: Sequence[bool]) -> np.ndarray:
    """Per question: true positive, false positive, false negative, true negative, unparsed yes, unparsed no; int [N, 6].

    Every metric is a function of the column sums. Raises ValueError if the lengths differ.
    """
    if len(answers) != len(labels):
        raise ValueError(f"{len(answers)} answers but {len(labels)} labels")
    column = {(True, True): 0, (True, False): 1, (False, True): 2, (False, False): 3, (None, True): 4, (None, False): 5}
    where = [column[None if a is None else bool(a), bool(label)] for a, label in zip(answers, labels, strict=True)]
    return np.eye(6, dtype=np.int64)[where].reshape(-1, 6)


def pope_of_counts(sums: np.ndarray) -> dict[str, np.ndarray]:
    """{metric: float [...]} of column sums [..., 6]. An unparsed answer is no yes and never right; 0/0 is 0."""
    tp, fp, fn, tn, lost_yes, lost_no = np.moveaxis(np.asarray(sums, dtype=np.float64), -1, 0)
    n, positives = tp + fp + fn + tn + lost_yes + lost_no, tp + fn + lost_yes
    return {
        "accuracy": _ratio(tp + tn, n),
        "precision": _ratio(tp, tp + fp),
        "recall": _ratio(tp, positives),
        "f1": _ratio(2 * tp, tp + fp + positives),
        "yes_ratio": _ratio(tp + fp, n),
    }


def pope_scores(answers: Sequence[bool | None], labels: Sequence[bool]) -> dict[str, float]:
    """Accuracy, precision, recall, F1, predicted yes-ratio and the share of ``unparsed`` answers (None)."""
    sums = pope_counts(answers, labels).sum(0)
    values = {name: float(v) for name, v in pope_of_counts(sums).items()}
    return {**values, "unparsed": float(_ratio(sums[4] + sums[5], sums.sum()))}


def pope_band(answers: Sequence[bool | None], labels: Sequence[bool]) -> dict[str, tuple[float, float]]:
    """{metric: (if every unparsed answer were wrong, if every one were right)}; for the yes-ratio (all no, all yes)."""
    tp, fp, fn, tn, yes, no = pope_counts(answers, labels).sum(0)
    wrong = pope_of_counts(np.array([tp, fp + no, fn + yes, tn, 0, 0]))
    right = pope_of_counts(np.array([tp + yes, fp, fn, tn + no, 0, 0]))
    band = {name: (float(wrong[name]), float(right[name])) for name in METRICS}
    n = max(1, tp + fp + fn + tn + yes + no)
    return {**band, "yes_ratio": (float((tp + fp) / n), float((tp + fp + yes + no) / n))}


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros(np.broadcast(a, b).shape), where=np.asarray(b) > 0)
