"""A new objective in ten lines: pull matching pictures and captions together, without negatives, and see what that is worth.

python examples/jobs/a_loss_of_your_own.py --budget 2m
"""

import argparse
import sys
from pathlib import Path

from torch import Tensor

import diptych as dp
from diptych.core.encodings import IMAGE_EMBEDDING, TEXT_EMBEDDING, Pass
from diptych.objectives import Objective


class Together(Objective):
    """1 − cosine of a picture and its caption. Alone it collapses: all vectors become one."""

    needs = (IMAGE_EMBEDDING, TEXT_EMBEDDING)

    def forward(self, p: Pass) -> Tensor:
        """The mean over the batch, a scalar."""
        return (1 - (p[IMAGE_EMBEDDING] * p[TEXT_EMBEDDING]).sum(-1)).mean()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", default="30s")
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=Path("runs/jobs/own-loss"))
    given = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))  # where the recipe finds this module
    for name, objectives in {
        "together": "{together: {kind: a_loss_of_your_own:Together}}",
        "with-contrast": "{info_nce: 1, together: {kind: a_loss_of_your_own:Together, weight: 0.1}}",
    }.items():
        run = dp.train("clip", budget=given.budget, out=given.out / name, set=[f"stages.0.objectives={objectives}", *given.set])
        summary = dp.evaluate(run.path, "scenes:small", ["retrieval?n=50"])
        (recall,) = [r for r in summary.results if r.metric == "text-to-image/recall@1"]
        print(f"{name}: R@1 of 50 {recall.value:.2f} [{recall.low:.2f}-{recall.high:.2f}]")
