"""Arms of a selection of sets: the mixture of each, its runs, and what they achieve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diptych.comparison.jobs import budget_each, run_jobs, share_out, why_failed
from diptych.comparison.paired import Credits, credits_of_run
from diptych.comparison.run import Evaluation, RecipeJob, run_backbones
from diptych.config.budget import parse_budget
from diptych.config.recipe import load_recipe
from diptych.core.errors import DiptychError, counted
from diptych.core.files import read_json, write_json
from diptych.data.sources import open_source
from diptych.data.sources.mixture import sizing_of
from diptych.training.start.backbones import folder_beside

WAYS = ("add", "leave-one-out")
NOTE = "sets.json"
Arm = tuple[int, ...]  # numbers of the sets in it, from 1 on, ascending; 0: the base


@dataclass
class Selection:
    """What to select from, and how.

    sets: name → address. base: an address that every arm has; "": none, and ``add`` begins with the first set. rule: weights by
    size (``T=2;cap=20000;``); "": all alike. eval_data: what every arm is evaluated on.
    """

    recipe: str
    sets: dict[str, str]
    eval_data: str
    tasks: list[str]
    budget: str
    base: str = ""
    rule: str = ""
    seeds: int = 3
    out: Path = Path("runs/sets")
    jobs: int | None = None
    set: list[str] = field(default_factory=list)
    ways: Sequence[str] = WAYS

    def __post_init__(self) -> None:
        self.rule += ";" if self.rule and not self.rule.endswith(";") else ""

    @property
    def names(self) -> list[str]:
        """The names of the sets, in order."""
        return list(self.sets)

    def check(self) -> None:
        """Raises DiptychError for settings that cannot be compared fairly, or a folder that holds another selection."""
        from diptych.benchmarks.tasks import task

        if len(self.sets) < 2:
            raise DiptychError(f"sets: {counted(len(self.sets), 'set')}; give two or more, as --source NAME=ADDRESS")
        if not parse_budget(self.budget).flops:
            raise DiptychError(
                f"sets: the budget '{self.budget}' is not in operations; arms get equal operations, such as 2T flops"
            )
        if unknown := [way for way in self.ways if way not in WAYS]:
            raise DiptychError(f"sets: no way '{unknown[0]}'; known: {', '.join(WAYS)}")
        if self.seeds < 1 or not self.tasks:
            raise DiptychError("sets: at least one seed and one task")
        if sizing_of(self.rule, self.rule)[1]:
            raise DiptychError(f"sets: --weights '{self.rule}' is not T=2; or T=2;cap=20000;")
        for name in self.tasks:
            task(name)
        for address in (*([self.base] if self.base else []), *self.sets.values()):
            if address.startswith("mix:"):
                raise DiptychError(f"sets: '{address}' is a mixture; name its sources as sets of their own")
            open_source(address)
        now = {key: getattr(self, key) for key in ("recipe", "base", "rule", "eval_data", "budget", "set")}
        note = self.out / NOTE
        before = read_json(note) if note.is_file() else {**now, "sets": {}}
        for key, value in now.items():
            if before[key] != value:
                raise DiptychError(
                    f"{self.out} holds a selection with {key} = {before[key]!r}, not {value!r}; choose another --out"
                )
        numbered = list(before["sets"].items())
        if list(self.sets.items())[: len(numbered)] != numbered:
            raise DiptychError(
                f"{self.out} holds a selection among other sets; add new ones behind these: {', '.join(before['sets'])}"
            )
        write_json(note, {**now, "sets": self.sets})

    def address(self, arm: Arm) -> str:
        """The data of an arm."""
        every = [self.base, *self.sets.values()]
        parts = [every[k] for k in arm]
        if len(parts) == 1:
            return parts[0]
        return f"mix:{self.rule}" + "+".join(f"1*{address}" for address in parts)

    def first(self) -> Arm:
        """What ``add`` begins with."""
        return (0,) if self.base else (1,)

    def whole(self) -> Arm:
        """All sets, and the base."""
        return (*((0,) if self.base else ()), *range(1, len(self.sets) + 1))

    def called(self, arm: Arm) -> str:
        """An arm in words."""
        return " + ".join(["base", *self.names][k] for k in arm)

    def folder(self, arm: Arm, seed: int) -> Path:
        """The directory of one run."""
        return self.out / f"{'+'.join(map(str, arm))}-s{seed}"


def train_and_evaluate(selection: Selection, arms: Sequence[Arm]) -> None:
    """Trains and evaluates what is missing of these arms. Raises DiptychError if a run fails."""
    side_by_side, threads = share_out(selection.jobs, len(arms) * selection.seeds)
    budget = budget_each(parse_budget(selection.budget), side_by_side)
    planned = []
    for seed in range(selection.seeds):
        for arm in arms:
            given = [f"data.train={selection.address(arm)}", f"seed={seed}", *selection.set]
            recipe = load_recipe(selection.recipe, given).model_copy(update={"budget": budget})
            evaluations = [Evaluation(selection.eval_data, selection.tasks)]
            label = f"{selection.called(arm)} s{seed}"
            path = selection.folder(arm, seed)
            job = RecipeJob(label, path, threads, recipe, evaluations, backbones=folder_beside(selection.out))
            job.check_same()
            planned.append(job)
    run_backbones(planned, side_by_side)
    if failed := run_jobs(planned, side_by_side):
        raise DiptychError(why_failed(failed, planned))


def achieved(selection: Selection, arm: Arm) -> dict[int, Credits]:
    """{seed: credits} of an arm: those of each task's first metric, and of all of them together as ("all", "score"), in which tasks
    count alike whatever their numbers of items.
    """
    return {seed: _with_score(credits_of_run(selection.folder(arm, seed) / "evaluation")) for seed in range(selection.seeds)}


def _with_score(credits: Mapping[tuple[str, str], Any]) -> Credits:
    named: dict[str, tuple[str, str]] = {}
    for key in credits:
        if key[0] not in named or key[1] == "accuracy":
            named[key[0]] = key
    chosen = {key: credits[key] for key in named.values()}
    items = sum(map(len, chosen.values()))
    score = {
        f"{task}/{item}": (credit * items / (len(chosen) * len(of)), f"{task}/{cluster}")
        for (task, _), of in chosen.items()
        for item, (credit, cluster) in of.items()
    }
    return {("all", "score"): score, **chosen}
