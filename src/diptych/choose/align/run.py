"""Align a run, and say what it changed: the margin of right answers and the image-swap test, before and after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diptych.benchmarks.base import NotApplicable
from diptych.benchmarks.controls import derangement
from diptych.benchmarks.probes.preferences import Preferences, with_pairs
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.statistics import mean_interval
from diptych.choose.align.recipe import METHODS, Method, aligned_recipe, method_named
from diptych.choose.align.reward_model import RewardModel
from diptych.choose.align.sampled import asked_samples, best_of, choices, rollouts, written
from diptych.config.overrides import Overrides, parse_overrides
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
    judged: dict[str, float] = field(default_factory=dict)  # of a reward model: its accuracy on test pairs
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
        return {"run": str(self.run), "method": self.method, "preferences": rows, "judged": self.judged, "skipped": self.skipped}


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
    if through not in ("diptych", "trl"):
        raise DiptychError(f"--through: expected diptych or trl, not '{through}'")
    asked = data
    if chosen.samples and (chosen.objective or through == "trl"):
        data, overrides = own_answers(run, chosen, data, out, overrides)
    if through == "trl":
        if not chosen.trl:
            known = ", ".join(m.name for m in METHODS.values() if m.trl)
            raise DiptychError(f"--through trl: trl has no trainer for '{method}'; it has {known}")
        from diptych.choose.align.through_trl import train_through_trl

        train_through_trl(run, chosen, data, out, overrides)
    else:
        train(aligned_recipe(run, chosen, data, budget, overrides), out, progress=progress)
    return measured(run, out, method, asked, pairs)


OWN = {"rollouts": 5, "questions": 256, "temperature": 1.0, "choices": 4}  # settings of the answers that a model writes first


def own_answers(run: Path, method: Method, data: str, out: Path, overrides: Overrides) -> tuple[str, dict[str, Any]]:
    """Let a run answer the questions of the training part, and write what it is to learn of its answers to ``out/own``. Returns the
    address of that, and the overrides that are left: ``rollouts``, ``questions``, ``temperature`` and ``choices`` are taken here.
    """
    given = parse_overrides(overrides)
    how = {name: given.pop(name, value) for name, value in OWN.items()}
    for name in ("rollouts", "questions", "choices"):
        if not isinstance(how[name], (int, float)) or how[name] != int(how[name]) or how[name] < 2:
            raise DiptychError(f"--set {name}: expected a whole number of 2 or more, got {how[name]!r}")
    samples = asked_samples(open_source(data).split("train"), int(how["questions"]))
    answers = rollouts(TrainedModel.load(run), samples, int(how["rollouts"]), 0, temperature=float(how["temperature"]))
    rows = best_of(samples, answers) if method.samples == "best" else choices(samples, answers, int(how["choices"]))
    return written(rows, samples, out / "own"), given


def measured(run: Path, out: Path, method: str, data: str, pairs: int) -> Aligned:
    """The task ``preferences`` on the test part of the data, of the run before and after; saved as alignment.json."""
    result = Aligned(out, method)
    task = Preferences(n=pairs)
    try:
        if METHODS[method].objective == "reward":
            return _judged(result, run, out, data, pairs)
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


def _judged(result: Aligned, run: Path, out: Path, data: str, pairs: int) -> Aligned:
    """The accuracy of a reward model on the test part: with each pair's own picture, and with another pair's."""
    items = Preferences(n=pairs).items(with_pairs(open_source(data).split("test")))
    judge, n = RewardModel(out), len(items)
    order = derangement(n)
    margins = []
    for shown in (range(n), order if order is not None else range(n)):
        sides = [
            judge.rewards([items[i].image for i in shown], [x.prompt for x in items], texts, [x.pair.facts for x in items])
            for texts in ([x.pair.chosen for x in items], [x.pair.rejected for x in items])
        ]
        margins.append(sides[0] - sides[1])
    own, other = margins
    result.judged = {
        "accuracy": float((own > 0).mean()),
        "accuracy_with_other_pictures": float((other > 0).mean()),
        "margin": float(own.mean()),
        "swap": float((own - other).mean()),
        "n": float(n),
    }
    write_json(out / NOTE, {**result.plain(), "before": str(run.resolve()), "data": data})
    return result


def _records(task: Preferences, run: Path, items: Any) -> list[Record]:
    """The records of one run."""
    model, records = TrainedModel.load(run), Records()
    lacking = [name for name in task.needs if name not in model.capabilities]
    if lacking:
        raise NotApplicable(f"{run} does not {' and '.join(lacking)}")
    task.run(model, items, records)
    return records.all()
