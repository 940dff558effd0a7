"""Plans: the fits, other machines by hand, the audit, and the command on a tiny run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import cli_fixture
from cli_fixture import Cli
from diptych.config.budget import Budget
from diptych.config.recipe import load_recipe
from diptych.core.errors import DiptychError
from diptych.plan import elsewhere, parse_machine
from diptych.plan.audit import audit, keep, key_of, note
from diptych.plan.estimate import Estimate, Line, StagePlan, first_size, second_size, steps_of, through, total
from diptych.plan.machines import GIB
from diptych.plan.trials import Trial, alone, run_trial

cli = cli_fixture.cli


def stage(**changes: object) -> StagePlan:
    given = {
        "name": "main", "batch": 100, "step": 2.0, "step_range": (1.8, 2.2), "flops": 5e12, "tokens": 700.0, "peak": 3e9,
        "per_sample": 2e7, "loader": 400.0, "largest": 500, "parameters": 10**8, "trainable": 6 * 10**7,
    }  # fmt: skip
    return StagePlan(**{**given, **changes})  # type: ignore[arg-type]


def trial(batch: int, peak: float) -> Trial:
    return Trial(batch, 1.0, 0.0, 1.0, 1.0, int(peak), 1, 1, 20)


def test_a_line_goes_through_two_points_and_never_falls() -> None:
    assert through([(4, 10.0), (16, 34.0)]) == Line(2.0, 2.0)
    assert through([(8, 24.0)]) == Line(0.0, 3.0)
    falling = through([(4, 10.0), (16, 8.0)])
    assert falling.slope == 0 and falling.at(100) == 8.0


def test_sizes_that_are_tried() -> None:
    recipe = load_recipe("clip", ["stages.0.batch_size=128"])
    (only,) = recipe.stages
    assert first_size(only) == 32
    assert second_size(only, trial(32, 1e9), int(10e9)) == 128
    assert second_size(only, trial(32, 1e9), int(2e9)) == 16, "what may not fit is not tried"
    assert second_size(only, trial(32, 1e9), None) == 128
    pieces = load_recipe("clip", ["stages.0.batch_size=128", "stages.0.micro_batch=8"]).stages[0]
    assert first_size(pieces) == 32 and second_size(pieces, trial(32, 1e9), int(2e9)) == 16
    small = load_recipe("clip", ["stages.0.batch_size=12"]).stages[0]
    assert first_size(small) == 12 and second_size(small, trial(12, 1e9), None) is None


@pytest.mark.parametrize(
    ("budget", "steps"),
    [("90s", 45), ("91s", 46), ("1k samples", 10), ("7k tokens", 10), ("50T flops", 10), ("3 steps", 3), ("1 samples", 1)],
)
def test_how_many_steps_a_budget_pays_for(budget: str, steps: int) -> None:
    assert steps_of(stage(), Budget.parse(budget)) == steps


def test_the_first_limit_counts_and_stages_share_the_budget() -> None:
    assert steps_of(stage(), Budget(seconds=90, samples=1000)) == 10
    recipe = load_recipe("flip", ["budget=1000 samples"])
    shares = [s.share for s in recipe.stages]
    made = total(recipe, [stage(step=1.0, step_range=(0.5, 1.5)), stage(step=3.0, step_range=(2.0, 4.0), peak=5e9)], int(6e9))
    first = 1000 * shares[0] / sum(shares) / 100
    assert made.seconds == pytest.approx(round(first) * 1.0 + round(10 - first) * 3.0, abs=3.01)
    assert made.peak == 5e9 and made.fits and made.seconds_range[0] < made.seconds < made.seconds_range[1]
    assert not total(recipe, [stage(), stage(peak=5.5e9)], int(6e9)).fits


def test_the_slower_of_loader_and_model_limits() -> None:
    assert stage(loader=400.0).limit == "compute" and stage(loader=55.0).limit == "loader"


def estimate(*stages: StagePlan) -> Estimate:
    return total(load_recipe("clip", ["budget=10k samples"]), stages, None)


def test_another_machine_by_hand() -> None:
    there = elsewhere(estimate(stage()), parse_machine("4x A100 40GB, 200 Gb/s"), mfu=0.5, price=2.0)
    compute, link = 5e12 / (4 * 312e12 * 0.5), 2 * 3 / 4 * 6e7 * 4 * 8 / 200e9
    assert {t.name: t.seconds for t in there.terms} == pytest.approx({"compute": compute, "link": link})
    assert there.limit == "link" and there.hours == pytest.approx(100 * (compute + link) / 3600)
    assert there.cost == pytest.approx(there.hours * 4 * 2.0) and there.kwh == pytest.approx(there.hours * 4 * 0.4)
    state = 1e8 * 4 + 6e7 * 4 * 3
    assert there.needed == pytest.approx(state + GIB + 2e7 * 25) and there.fits
    assert there.largest == int((0.9 * 40 * GIB - state - GIB) / 2e7) * 4
    assert there.loader_cores == pytest.approx(100 / (compute + link) / 400)
    sharded = elsewhere(estimate(stage()), parse_machine("4x A100"), sharded=True)
    assert sharded.memory["weights, gradients, optimizer"] == pytest.approx(state / 4)


def test_each_stage_has_its_own_steps_elsewhere() -> None:
    recipe = load_recipe("flip", ["budget=100s"])
    first, second = stage(step=1.0, batch=100), stage(step=5.0, batch=10, flops=1e12)
    made = total(recipe, [first, second], None)
    shares = [s.share / sum(s.share for s in recipe.stages) for s in recipe.stages]
    assert made.counts == pytest.approx([100 * shares[0], 100 * shares[1] / 5], abs=1)
    there = elsewhere(made, parse_machine("A100"), mfu=0.5)
    assert there.hours * 3600 == pytest.approx((made.counts[0] * 5e12 + made.counts[1] * 1e12) / (312e12 * 0.5))


def test_one_device_has_no_link_and_a_large_model_does_not_fit() -> None:
    there = elsewhere(estimate(stage(parameters=7 * 10**9, trainable=7 * 10**9)), parse_machine("h100"))
    assert {t.name: t.seconds for t in there.terms}["link"] == 0 and there.limit == "compute"
    assert not there.fits and there.largest == 0


@pytest.mark.parametrize(
    ("text", "count", "device", "gib", "link"),
    [
        ("64x H100 80GB, 400 Gb/s", 64, "H100", 80, 400),
        ("A100", 1, "A100", 80, 100),
        ("2 × RTX 4090", 2, "RTX4090", 24, 100),
        ("8x a100 40GiB", 8, "A100", 40, 100),
    ],
)
def test_machines_are_read(text: str, count: int, device: str, gib: float, link: float) -> None:
    found = parse_machine(text)
    assert (found.count, found.device, found.memory / GIB, found.link) == (count, device, gib, link)


@pytest.mark.parametrize(
    ("text", "reason"), [("8x H1000", "did you mean 'H100'"), ("0x H100", "at least one"), ("?", "expected a form")]
)
def test_unknown_machines_are_refused(text: str, reason: str) -> None:
    with pytest.raises(DiptychError, match=reason):
        parse_machine(text)


def test_plans_are_compared_with_the_runs_of_the_same_recipe(tmp_path: Path) -> None:
    recipe = load_recipe("clip", ["budget=10k samples"])
    assert audit(tmp_path) is None
    keep(recipe, estimate(stage()), tmp_path)  # 100 steps: 200 s, 180 to 220; 3 GB
    done = {"finished": True, "seconds": 210.0, "peak_memory_bytes": 3.2e9}
    other_seed = load_recipe("clip", ["budget=10k samples", "seed=5"])
    assert note(recipe, done, tmp_path) and note(other_seed, {**done, "seconds": 400.0, "peak_memory_bytes": 2e9}, tmp_path)
    assert not note(load_recipe("clip", ["budget=11k samples"]), done, tmp_path), "another recipe has no plan"
    assert not note(recipe, {**done, "finished": False}, tmp_path)
    found = audit(tmp_path)
    assert found is not None and (found.runs, found.time, found.memory, found.covered) == (2, 0.5, 0.5, 0.5)
    assert [round(r["seconds"], 3) for r in found.rows] == [round(200 / 210, 3), 0.5]
    assert key_of(recipe) == key_of(other_seed) != key_of(load_recipe("siglip", ["budget=10k samples"]))


def test_a_stage_alone_is_a_recipe() -> None:
    recipe = load_recipe("flip")
    content = alone(recipe, 1, 8)
    assert len(content["stages"]) == 1 and content["stages"][0]["batch_size"] == 8
    assert content["stages"][0]["objectives"] == alone(recipe, 1)["stages"][0]["objectives"]


SMALL = ["--set", "parts.vision.depth=1", "--set", "parts.text.depth=1", "--set", "stages.0.batch_size=8"]


def test_the_command_shows_a_plan_and_the_audit(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("diptych.plan.plan_recipe", lambda recipe, **_: total(recipe, [stage()], int(4e9)))
    asked = ["clip", "--budget", "10k samples"]
    words = cli("plan", *asked, "--machine", "2x L4", "--price", "1").out
    assert "3.3 min of training (3.0 min to 3.7 min)" in words and "100, 10k samples" in words and "fits" in words
    assert "on 2 × L4" in words and "DOES NOT FIT" not in words and "no run had a plan" in cli("plan", "--audit").out
    note(load_recipe("clip", ["budget=10k samples"]), {"finished": True, "seconds": 200.0, "peak_memory_bytes": 3e9})
    assert "1 run: time within 15 % in 100%" in cli("plan", "--audit").out
    made = json.loads(cli("plan", *asked, "--json").out)
    assert made["here"]["fits"] and made["elsewhere"] is None


@pytest.mark.slow
def test_the_command_plans_and_the_run_is_audited(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("diptych.plan.trials.SECONDS", 1.0)
    same = ["clip", "--data", "scenes:small?size=32", "--budget", "64 samples", *SMALL]
    outcome = cli("plan", *same, "--machine", "2x L4", "--json")
    assert outcome.code == 0, outcome.err
    made = json.loads(outcome.out)
    assert made["here"]["steps"] == 8 and made["here"]["peak"] > 1e8 and made["here"]["seconds"] > 0
    assert made["elsewhere"]["machine"]["device"] == "L4" and made["elsewhere"]["needed"] > GIB
    assert cli("train", *same, "--out", "r").code == 0
    found = json.loads(cli("plan", "--audit", "--json").out)
    spent = json.loads((tmp_path / "r" / "spent.json").read_text())
    assert found["runs"] == 1 and found["rows"][0]["seconds"] == pytest.approx(made["here"]["seconds"] / spent["seconds"])
    assert 0.5 < found["rows"][0]["peak"] < 2


def test_a_trial_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match=r"nowhere\.csv"):
        run_trial(load_recipe("clip", [f"data.train=csv:{tmp_path}/nowhere.csv"]), 0, 8, 1)


def test_wrong_machines_are_refused_before_anything_is_tried(cli: Cli) -> None:
    outcome = cli("plan", "clip", "--machine", "8x H1000")
    assert outcome.code == 1 and "did you mean" in outcome.err and "some steps" not in outcome.err
    assert "name a recipe" in cli("plan").err
