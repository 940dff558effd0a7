"""Sets of classes that hold the true one with a chosen probability, from pictures with known classes that the model did not learn
from: split conformal prediction (Vovk et al. 2005; Lei et al. 2018, arXiv:1604.04173).

The guarantee needs calibration and new pictures that are drawn alike. It is an average over pictures of all classes, unless each
class has a threshold of its own.

Shapes: N pictures, C classes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from diptych.core.errors import DiptychError, counted

Kind = Literal["lac", "aps"]
KINDS: tuple[Kind, ...] = ("lac", "aps")


@dataclass(frozen=True)
class Conformal:
    """Which classes belong to a picture's set: those with a score of at most ``threshold``, one for all or one for each class.

    kind: ``lac``, the smallest sets on average (Sadinle, Lei & Wasserman 2019, arXiv:1609.00451); ``aps``, sets that grow with how
    difficult a picture is (Romano, Sesia & Candès 2020, arXiv:2006.02544). error: the share of pictures whose set may miss the true
    class. n: the calibration pictures. few: of the classes that have too few of them, so that their threshold is ∞, the numbers.
    """

    kind: Kind
    error: float
    threshold: float | tuple[float, ...]
    n: int
    few: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data for JSON, None for ∞."""
        values = self.threshold if isinstance(self.threshold, tuple) else (self.threshold,)
        plain = [t if math.isfinite(t) else None for t in values]
        own = {"threshold": plain if isinstance(self.threshold, tuple) else plain[0], "few": list(self.few)}
        return {"kind": self.kind, "error": self.error, "n": self.n, **own}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Conformal:
        """From what ``to_dict`` gave."""
        given = data["threshold"]
        values = [math.inf if t is None else float(t) for t in (given if isinstance(given, list) else [given])]
        own = tuple(values) if isinstance(given, list) else values[0]
        return cls(data["kind"], data["error"], own, data["n"], tuple(data["few"]))

    def sets(self, probabilities: np.ndarray, draws: np.ndarray | None = None) -> np.ndarray:
        """Which classes are in the set of each picture, bool [N, C]. draws: as for ``aps_scores``."""
        members: np.ndarray = class_scores(self.kind, probabilities, draws) <= np.asarray(self.threshold)
        return members


def lac_scores(probabilities: np.ndarray) -> np.ndarray:
    """1 − the probability of each class (Sadinle et al. 2019, section 2.2), float64 [N, C]."""
    return 1 - np.asarray(probabilities, dtype=np.float64)


def aps_scores(probabilities: np.ndarray, draws: np.ndarray | None = None) -> np.ndarray:
    """The probability of all likelier classes, and u times its own, for each class (Romano et al. 2020, equation 7), float64 [N,
    C].

    draws: u of each picture, uniform in [0, 1] and independent of all else [N]; without them u = 1, and sets are larger than they
    need to be. Of equally likely classes the first counts as likelier.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    u = np.ones(len(p)) if draws is None else np.asarray(draws, dtype=np.float64)
    order = np.argsort(-p, axis=1, kind="stable")
    sorted_p = np.take_along_axis(p, order, 1)
    sums = np.cumsum(sorted_p, 1) - (1 - u[:, None]) * sorted_p
    scores = np.empty_like(p)
    np.put_along_axis(scores, order, sums, 1)
    return scores


def class_scores(kind: Kind, probabilities: np.ndarray, draws: np.ndarray | None = None) -> np.ndarray:
    """The scores of a kind, float64 [N, C]; low: the class fits."""
    return lac_scores(probabilities) if kind == "lac" else aps_scores(probabilities, draws)


def threshold(scores: np.ndarray, error: float) -> float:
    """The ⌈(n + 1)(1 − error)⌉-th smallest of n scores; ∞ if there is none, since there are too few scores for this error rate.

    With n + 1 scores in random order, the last is at most this with probability of at least 1 − error (Lei et al. 2018, theorem
    2.2); at most 1 − error + 1 / (n + 1) if no two are equal.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    rank = math.ceil((len(ordered) + 1) * (1 - error) - 1e-9)  # 1 − 0.1 is not exact
    return float(ordered[rank - 1]) if rank <= len(ordered) else math.inf


def fewest(error: float) -> int:
    """The fewest calibration pictures with which a set can be smaller than all classes."""
    return math.ceil(1 / error - 1 - 1e-9)


def check_error(error: float) -> float:
    """The error rate. DiptychError unless it lies between 0 and 1."""
    if not 0 < error < 1:
        raise DiptychError(f"--error {error:g}: expected a share between 0 and 1, such as 0.1 for one picture in ten")
    return error


def calibrated(
    probabilities: np.ndarray, labels: np.ndarray, error: float, kind: Kind = "lac", seed: str = "", each_class: bool = False
) -> Conformal:
    """The threshold from pictures with known classes, in columns of ``probabilities`` [n, C]; labels int [n].

    A label of −1 is a class that the model does not know: no set can hold it, and sets of others become larger for it. seed: of the
    draws of ``aps``. each_class: a threshold for each class from its own pictures, so that the promise holds for each class (Vovk
    2012, arXiv:1209.2673; Sadinle et al. 2019, section 2.1); a class with too few of them is in every set. DiptychError for no
    picture or a wrong error rate.
    """
    labels = np.asarray(labels)
    check_error(error)
    if not len(labels):
        raise DiptychError("no picture to compute an error rate from; give --calibrate ADDRESS with pictures of known classes")
    scores = class_scores(kind, probabilities, uniform([f"{seed}{i}" for i in range(len(labels))]) if kind == "aps" else None)
    own = np.where(labels >= 0, scores[np.arange(len(labels)), labels], math.inf)
    if each_class:
        thresholds = tuple(threshold(own[labels == c], error) for c in range(scores.shape[1]))
        few = tuple(c for c, t in enumerate(thresholds) if math.isinf(t))
        return Conformal(kind, error, thresholds, len(labels), few)
    return Conformal(kind, error, threshold(own, error), len(labels))


def uniform(names: Sequence[str]) -> np.ndarray:
    """A number in [0, 1) for each name, the same in every call and on every machine, float64 [N]: draws for ``aps`` that do not
    depend on the order in which pictures are read.
    """
    hashes = [hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest() for name in names]
    return np.array([int.from_bytes(h, "big") / 2**64 for h in hashes])


def too_few(conformal: Conformal, names: Sequence[str] = ()) -> str:
    """What to say where the calibration pictures are too few for the error rate, so that every set holds all classes, or one of
    these ``names``; else "".
    """
    needed = fewest(conformal.error)
    if conformal.few:
        listed = ", ".join(names[c] for c in conformal.few[:10]) + (" …" if len(conformal.few) > 10 else "")
        return (
            f"an error rate of {conformal.error:g} in each class needs {counted(needed, 'calibration picture')} of it at least; "
            f"every set holds the {counted(len(conformal.few), 'class', 'classes')} with fewer: {listed}"
        )
    if isinstance(conformal.threshold, tuple) or math.isfinite(conformal.threshold):
        return ""
    if conformal.n >= needed:
        return (
            f"more than {conformal.error:.0%} of the {conformal.n} calibration pictures are of classes that the model does not "
            "know: every set holds all classes"
        )
    return (
        f"an error rate of {conformal.error:g} needs {counted(needed, 'calibration picture')} at least, there are {conformal.n}: "
        "every picture is unsure; allow more errors (--error), or give more pictures"
    )
