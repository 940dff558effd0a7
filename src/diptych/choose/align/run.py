"""Align a run, and say what it changed: the margin of right answers and the image-swap test, before and after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diptych.benchmarks.base import NotApplicable
from diptych.benchmarks.probes.preferences import Preferences
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.statistics import mean_interval
from diptych.choose.align.recipe import METHODS, aligned_recipe, method_named
from diptych.config.overrides import Overrides
from diptych.core.errors import DiptychError
from diptych.core.files import write_json
from diptych.data.sources import open_source
from diptych.data.storage.files import is_local
from diptych.inference.run import TrainedModel
from diptych.training.checkpoint import checkpoints
from diptych.training.loop import train

NOTE = "alignment.json"  # in the run's directory


@dataclass
class Aligned:
    """The run that was made; the results of the task ``preferences`` before and after, and how much each metric changed: by metric
    (mean, low, high) over the same pairs.
    """

    run: Path
    method: str
    before: list[Result] = field(default_factory=list)
    after: list[Result] = field(default_factory=list)
    changes: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    skipped: str = ""  # why nothing was measured

    def plain(self) -> dict[str, Any]:
        """As plain data."""
        rows = [
            {
                "metric": old.metric,
                "before": old.value,
                "after": new.value,
                "change": dict(zip(("value", "low", "high"), self.changes[old.metric], strict=True)),
                "n": new.n,
            }
            for old, new in zip(self.before, self.after, strict=True)
        ]
        return {"run": str(self.run), "method": self.method, "preferences": rows, "skipped": self.skipped}


def align(
    run: Path,
    method: str,
    data: str,
    out: Path | None = None,
    budget: str | None = None,
    overrides: Overrides = None,
    through: str = "diptych",
    pairs: int = 200,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> Aligned:
    """Continue a run by a method of ``METHODS`` on the training part of data with pairs of answers.

    through: ``diptych``, the engine here, or ``trl``, on the run's export. pairs: of the test part, for the measurement before and
    after. DiptychError for what the user can fix.
    """
    chosen = method_named(method)
    out = out or run.parent / f"{run.name}-{method}"
    if checkpoints(out / "checkpoints"):
        raise DiptychError(f"{out} holds a run already; choose another --out")
    if through == "trl":
        if not chosen.trl:
            known = ", ".join(m.name for m in METHODS.values() if m.trl)
            raise DiptychError(f"--through trl: trl has no trainer for '{method}'; it has {known}")
        from diptych.choose.align.through_trl import train_through_trl

        train_through_trl(run, chosen, data, out, overrides)
    elif through == "diptych":
        train(aligned_recipe(run, chosen, data, budget, overrides), out, progress=progress)
    else:
        raise DiptychError(f"--through: expected diptych or trl, not '{through}'")
    return measured(run, out, method, data, pairs)


def measured(run: Path, out: Path, method: str, data: str, pairs: int) -> Aligned:
    """The task ``preferences`` on the test part of the data, of the run before and after; saved as alignment.json."""
    result = Aligned(out, method)
    task = Preferences(n=pairs)
    try:
        items = task.items(open_source(data).split("test"))
        rows = [_records(task, each, items) for each in (run, out)]
    except NotApplicable as reason:
        result.skipped = str(reason)
    else:
        result.before, result.after = (task.summarise(each) for each in rows)
        old, new = (task.credits(each) for each in rows)
        for metric, credits in new.items():
            differences = [value - old[metric][item] for item, value in credits.items()]
            at = mean_interval(differences, list(credits), share=False)
            result.changes[metric] = at.value, at.low, at.high
    write_json(out / NOTE, {**result.plain(), "before": str(run.resolve()) if is_local(str(run)) else str(run), "data": data})
    return result


def _records(task: Preferences, run: Path, items: Any) -> list[Record]:
    """The records of one run."""
    model, records = TrainedModel.load(run), Records()
    lacking = [name for name in task.needs if name not in model.capabilities]
    if lacking:
        raise NotApplicable(f"{run} does not {' and '.join(lacking)}")
    task.run(model, items, records)
    return records.all()
