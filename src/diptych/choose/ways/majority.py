"""The control: a way that sees no picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diptych.choose.ways.base import Support, Way
from diptych.inference.heads import Head, Linear


@dataclass(frozen=True)
class Majority(Way):
    """The commonest class of the training pictures, whatever the picture shows: what every way has to beat."""

    name = "majority"
    about = "control: always the commonest class"

    def fit(self, support: Support) -> Head:
        """Logits are the log shares of the classes, each counted once more than it was seen."""
        counts = np.bincount(support.y, minlength=support.classes) + 1.0
        return Linear(np.zeros((support.classes, support.x.shape[1])), np.log(counts / counts.sum()))
