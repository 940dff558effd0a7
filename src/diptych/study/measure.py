"""The measures of one trained run that are functions, in their own process.

``python -m diptych.study '{"study": …, "arm": …, "seed": …}'``
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.comparison.jobs import Job, send


def functions_of(study: Any, arm: str) -> list[str]:
    """The names of the measures that are functions and apply to this arm."""
    return [name for name, measure in study.measures.items() if measure.function and arm in study.measured_on(name)]


@dataclass
class MeasureJob(Job):
    """A process that takes the measures of one arm and seed."""

    runs: Any  # diptych.study.runs.Runs
    arm: str
    seed: int
    module = "diptych.study"

    def arguments(self) -> dict[str, Any]:
        """The JSON arguments of the process."""
        return {"study": str(self.runs.folder), "arm": self.arm, "seed": self.seed}

    def done(self) -> bool:
        """Whether all of its results exist."""
        return all(self.runs.kept(name, self.arm, self.seed) for name in functions_of(self.runs.study, self.arm))


def measure(given: dict[str, Any]) -> None:
    """Takes every measure of a run that has no result yet; the result, or the reason why there is none, is saved."""
    import torch

    from diptych.core.errors import DiptychError
    from diptych.core.registry import resolve
    from diptych.study.runs import Runs
    from diptych.study.schema import load_study

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    folder, arm, seed = Path(given["study"]), given["arm"], given["seed"]
    runs = Runs(load_study(str(folder / "study.yaml")), folder)
    names = functions_of(runs.study, arm)
    for number, name in enumerate(names):
        if runs.kept(name, arm, seed):
            continue
        send(phase=f"measuring {name}", share=number / len(names))
        spec = runs.study.measures[name]
        function = resolve(str(spec.function), {}, "measure")
        try:
            runs.keep(name, arm, seed, function(runs, arm, seed, **spec.options))
        except DiptychError as reason:
            runs.keep(name, arm, seed, str(reason))
    send(phase="done", share=1.0)
