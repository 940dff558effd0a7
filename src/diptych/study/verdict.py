"""From measurements to verdicts: does a claim hold here, does it not, or is that open?

A difference is compared with the noise of items and seeds at once (``benchmarks.crossed``). With one seed only the items vary, and
a verdict is about these runs, not about how they were trained; the table says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from diptych.benchmarks.crossed import Estimate, Measured, estimate, t_below
from diptych.study.schema import Claim

__all__ = ["FAILS", "HOLDS", "OPEN", "Estimate", "Measured", "Verdict", "decide", "estimate"]

HOLDS, FAILS, OPEN = "holds here", "does not hold", "cannot tell"


@dataclass(frozen=True)
class Verdict:
    """Whether a claim holds, and why."""

    verdict: str
    reason: str  # in words: what the interval says, or why there is none
    difference: Estimate | None = None
    p: float = math.nan  # of the claim's own test


def decide(claim: Claim, a: Sequence[Measured], b: Sequence[Measured] | float, share: bool = True) -> Verdict:
    """The verdict: *holds here* if the whole interval agrees with the claim, *does not hold* if none of it does, else open."""
    difference = estimate(a, b, share)
    if not math.isfinite(difference.value):
        return Verdict(OPEN, "not a number in every run", None)
    if math.isnan(difference.low):
        return Verdict(OPEN, "one seed and a measure without items: the spread is unknown", difference)
    low, high, by = difference.low, difference.high, claim.by
    if claim.expect == "same":
        p = max(_one_sided(difference, -by, above=True), _one_sided(difference, by, above=False))
        held, failed = -by < low and high < by, low >= by or high <= -by
    elif claim.expect == "higher":
        p = difference.p(by)
        held, failed = low > by, high < by or (high == by and low < high)
    else:
        p = difference.p(-by)
        held, failed = high < -by, low > -by or (low == -by and low < high)
    verdict = HOLDS if held else FAILS if failed else OPEN
    reason = "" if difference.seeds > 1 else "one seed: valid for these runs; another seed may differ"
    return Verdict(verdict, reason, difference, p)


def _one_sided(difference: Estimate, bound: float, above: bool) -> float:
    if not difference.error > 0:
        return math.nan
    t = (difference.value - bound) / difference.error
    return float(t_below(-t if above else t, difference.freedom))
