"""The demo: a budget that is the same on every machine, the time that it says, and the whole of it at a cut budget."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import cli_fixture
from cli_fixture import Cli
from diptych.benchmarks.tasks import task
from diptych.comparison import demo
from diptych.comparison.demo import RECIPES, Rate, comparison, expected_seconds, in_words, measure, training_seconds
from diptych.comparison.run import Comparison, RecipeJob, plan
from diptych.config.budget import Budget
from diptych.core.errors import DiptychError
from diptych.core.files import read_json

cli = cli_fixture.cli
RATE = Rate(flops=100e9, samples=500.0, startup=5.0)


def test_every_run_of_the_demo_has_the_same_number_of_operations_on_any_machine(tmp_path: Path) -> None:
    flops = Budget.parse(demo.BUDGET).flops
    assert flops is not None and 1e12 < flops < 30e12
    for jobs in (1, 2, 4):  # seconds would be shared out by the number of runs at a time
        planned, _ = plan(comparison(tmp_path, seeds=2, jobs=jobs))
        assert [job.recipe.budget for job in planned] == [Budget(flops=flops)] * 2 * len(RECIPES)
    assert [job.recipe.name for job in planned[: len(RECIPES)]] == [entry.recipe for entry in RECIPES]
    assert len({job.recipe.paradigm for job in planned}) > 2
    assert len({str(job.recipe.data.train) for job in planned}) == 1


def test_relation_and_binding_are_among_the_skills_that_the_demo_shows() -> None:
    (controlled,) = (task(name) for name in demo.TASKS if name.startswith("controlled"))
    assert controlled.n >= 100 and not controlled.skills  # type: ignore[attr-defined]
    for name in demo.TASKS:
        task(name)


def test_the_time_of_a_budget_is_that_of_the_limit_that_is_reached_first() -> None:
    assert training_seconds(Budget(flops=8e12), RATE) == pytest.approx(80.0)
    assert training_seconds(Budget(samples=5000), RATE) == pytest.approx(10.0)
    assert training_seconds(Budget(seconds=88), RATE) == 88
    assert training_seconds(Budget(seconds=88, flops=2e12), RATE) == pytest.approx(20.0)
    assert training_seconds(Budget(steps=10), RATE) is None


class Done(RecipeJob):
    def done(self) -> bool:
        return True


def planned_jobs(names: list[str], budget: str = "8T flops", seeds: int = 1) -> list[RecipeJob]:
    return plan(Comparison(names, "scenes:small", budget, seeds, Path("nowhere")))[0]


def test_jobs_are_shared_out_to_the_runs_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "RECIPES", (demo.Entry("clip", evaluation=0.5), demo.Entry("coca", evaluation=4.0)))
    planned = planned_jobs(["clip", "coca", "siglip"])
    own = {"clip": 5 + 80 + 5, "coca": 5 + 80 + 40, "siglip": 5 + 80 + 10 * demo.Entry.evaluation}
    assert expected_seconds(planned, 1, RATE) == pytest.approx(sum(own.values()))
    assert expected_seconds(planned, 2, RATE) == pytest.approx(max(own["clip"] + own["siglip"], own["coca"]))
    assert expected_seconds(planned, 3, RATE) == pytest.approx(max(own.values()))
    finished = Done(**{field.name: getattr(planned[1], field.name) for field in dataclasses.fields(planned[1])})
    assert expected_seconds([planned[0], finished], 1, RATE) == pytest.approx(own["clip"])
    assert expected_seconds([finished], 2, RATE) == 0
    assert expected_seconds(planned_jobs(["clip"], "10 steps"), 1, RATE) is None


def test_what_is_said_names_rate_threads_and_time() -> None:
    names = [entry.recipe for entry in RECIPES]
    planned = planned_jobs(names)
    threads = planned[0].threads
    said = in_words(planned, 2, RATE)
    assert "100GFLOP/s" in said and f"2 at a time with {threads} thread" in said and "2 seconds" in said
    seconds = expected_seconds(planned, 2, RATE)
    assert seconds is not None and f"about {round(seconds / 60)} min" in said and f"{len(names)} runs" in said
    assert "--budget" not in said
    slow = in_words(planned, 1, Rate(10e9, 50.0, 5.0))
    assert "--budget" in slow  # longer than the demo should take: what one can do
    assert "Expected" not in in_words(planned_jobs(names, "10 steps"), 2, RATE)


def test_the_command_says_the_time_first_and_measures_nothing_if_nothing_is_left(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    ran: list[Comparison] = []

    def measured(side_by_side: int, threads: int) -> Rate:
        assert not ran
        asked.append((side_by_side, threads))
        return RATE

    monkeypatch.setattr(demo, "measure", measured)
    monkeypatch.setattr("diptych.cli.compare.run_and_show", ran.append)
    monkeypatch.setattr(demo, "SET", ("stages.0.warmup=7",))
    outcome = cli("demo", "--out", "d", "--jobs", "2", "--seeds", "3")
    assert outcome.code == 0 and len(asked) == 1 and asked[0][0] == 2
    for words in ("Expected time", "--set stages.0.warmup=7", demo.BUDGET.split()[0], *(entry.recipe for entry in RECIPES)):
        assert words in outcome.out
    assert (ran[0].seeds, ran[0].set, ran[0].data) == (3, ["stages.0.warmup=7"], demo.DATA)
    monkeypatch.setattr(RecipeJob, "done", lambda self: True)
    again = cli("demo", "--out", "d")
    assert again.code == 0 and len(asked) == 1 and "Expected" not in again.out and len(ran) == 2


def test_a_measurement_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "false")
    with pytest.raises(DiptychError, match="could not be measured"):
        measure(2, 1, seconds=0.1)


@pytest.mark.slow
def test_the_demo_runs_at_a_cut_budget_and_the_measurement_is_one(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "TASKS", ("retrieval?n=20", "controlled?n=8", "captions?n=4"))
    outcome = cli("demo", "--out", "d", "--budget", "60G flops")
    assert outcome.code == 0, outcome.err
    assert "FLOP/s a run" in outcome.out and "Expected time of" in outcome.out
    names = [entry.recipe for entry in RECIPES]
    for name in names:
        spent: dict[str, Any] = read_json(Path("d") / f"{name}-s0" / "spent.json")
        assert spent["finished"] and 60e9 <= spent["flops"] < 160e9
        assert name in outcome.out
    page = Path("d/report.html").read_text(encoding="utf-8")
    assert "paradigms, one budget" in page and all(name in page for name in names)
    again = cli("demo", "--out", "d", "--budget", "60G flops")
    assert again.code == 0 and "Expected" not in again.out
    other = cli("demo", "--out", "d", "--budget", "70G flops")
    assert other.code == 1 and "budget" in other.err and "Expected" not in other.out


def test_what_the_demo_claims_is_checked_for_each_seed() -> None:
    from bench.demo import claims, main_table, seeds_table

    def run(recipe: str, seed: int, relation: float, binding: float) -> dict[str, Any]:
        groups = {"relation": [relation, relation - 0.03, relation + 0.03], "binding": [binding, binding - 0.03, binding + 0.03]}
        return {"recipe": recipe, "seed": seed, "groups": groups, "figures": {"relation": groups["relation"]}, "spent": {}}

    good = [run("clip", 0, 0.6, 0.75), run("negclip@tuned", 0, 0.95, 0.93), run("coca", 0, 0.9, 1.0), run("maskvlm", 0, 0.5, 0.5)]
    assert claims({"runs": good}) == []
    bad = [run("clip", 1, 0.68, 0.5), run("negclip@tuned", 1, 0.95, 0.89), run("coca", 1, 0.89, 1.0)]
    missed = claims({"runs": [*good, *bad]})
    assert [line.split(":")[0] for line in missed] == ["clip s1", "negclip@tuned s1", "coca s1"]
    assert "binding 0.890" in missed[1] and "up to 0.710" in missed[0]
    assert "| `clip` | 1 | 68.0 [65.0–71.0] | 50.0 [47.0–53.0] |" in seeds_table({"runs": bad}).splitlines()
    shown = main_table({"runs": [*good, *bad]}).splitlines()
    assert len(shown) == 2 + 4 and "60.0 [57.0–63.0]" in shown[2] and "—" in shown[2]
