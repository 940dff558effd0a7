"""Comparisons end to end: what they leave, what an interruption or a failure costs, what is refused."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

import cli_fixture
import diptych as dp
from cli_fixture import SMALL, Cli, make_photos
from diptych.benchmarks.tasks import DEFAULT, TASKS
from diptych.comparison.run import Comparison, run_comparison
from diptych.config.recipe import load_recipe
from diptych.core.errors import Interrupted
from diptych.core.files import read_json, read_jsonl
from diptych.report import build_report

cli = cli_fixture.cli
SET = SMALL[1::2]
SILENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def one_core() -> None:
    """Two threads that share a busy machine wait for each other."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module", params=["folder", "scenes:small"])
def compared(request: pytest.FixtureRequest, photos: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compared") / "c"
    data = photos if request.param == "folder" else request.param
    report = dp.compare(["clip", "siglip"], data, "64 samples", out=out, set=SET, tasks=["retrieval", "zeroshot", "embedding"])
    assert report == out / "report.html"
    return out


def test_a_comparison_leaves_page_table_numbers_and_tests(compared: Path) -> None:
    page = (compared / "report.html").read_text(encoding="utf-8")
    assert "clip" in page and "siglip" in page and "Retrieval" in page
    assert not re.search(r'(?:src|href)="(?:https?:)?//[^"]+\.(?:js|css|png)', page) and "data:image/" in page
    table = (compared / "table.md").read_text(encoding="utf-8")
    assert [name in table for name in ("clip", "siglip", "R@1")] == [True] * 3
    assert {r["name"] for r in read_json(compared / "results.json")["recipes"]} == {"clip", "siglip"}
    tests = read_json(compared / "tests.json")
    assert {(t["a"], t["b"]) for t in tests} == {("clip", "siglip")}
    tasks = {"retrieval", "zeroshot"} if "scenes" in read_json(compared / "compare.json")["data"] else {"retrieval"}
    assert {t["task"] for t in tests} >= tasks


def test_each_recipe_has_the_same_data_budget_and_items(compared: Path) -> None:
    runs = [compared / "clip-s0", compared / "siglip-s0"]
    spent = [read_json(run / "spent.json") for run in runs]
    assert [s["samples"] for s in spent] == [64, 64] and all(s["finished"] for s in spent)
    assert len({read_json(run / "environment.json")["data_fingerprint"] for run in runs}) == 1
    assert len({(run / "tokenizer.json").read_bytes() for run in runs}) == 1
    items = [[r["item"] for r in read_jsonl(run / "evaluation" / "records" / "retrieval.jsonl")] for run in runs]
    shown = [r["item"] for r in read_jsonl(compared / "items" / "retrieval.jsonl")]
    assert items[0] == items[1] == shown and len(shown) > 2
    rows = np.load(runs[0] / "evaluation" / "embeddings.npz")
    assert len(rows["image"]) == len(rows["text"]) == len(shown)


def test_the_same_command_again_does_nothing_twice(compared: Path, cli: Cli) -> None:
    kept = [compared / run / name for run in ("clip-s0", "siglip-s0") for name in ("spent.json", "evaluation/summary.json")]
    before = [path.stat().st_mtime_ns for path in kept]
    asked = ["--data", read_json(compared / "compare.json")["data"], "--budget", "64 samples", "--out", compared]
    again = cli("compare", "clip", "siglip", *asked, *SMALL, "--tasks", "retrieval,zeroshot,embedding")
    assert again.code == 0 and "Retrieval, R@1" in again.out and str(compared / "report.html") in again.out.replace("\n", "")
    assert [path.stat().st_mtime_ns for path in kept] == before
    (compared / "report.html").unlink()
    assert cli("report", compared).code == 0 and (compared / "report.html").is_file()


def test_another_budget_or_other_data_is_refused_before_anything_runs(compared: Path, cli: Cli) -> None:
    data = read_json(compared / "compare.json")["data"]
    for asked, words in (
        (["--data", data, "--budget", "65 samples", *SMALL], "budget = '64 samples', not '65 samples'"),
        (["--data", "scenes:small?size=32", "--budget", "64 samples", *SMALL], "data ="),
        (["--data", data, "--budget", "64 samples"], "set ="),
    ):
        outcome = cli("compare", "clip", "siglip", *asked, "--out", compared)
        assert outcome.code == 1 and words in outcome.err and "another --out" in outcome.err
        assert outcome.out == "", "the table of the other comparison would look like an answer"


def test_one_recipe_that_fails_leaves_the_others_their_report(cli: Cli, photos: str, tmp_path: Path) -> None:
    recipe = {
        "name": "boom",
        "paradigm": "contrastive",
        "parts": {"vision": {"kind": "vit"}, "text": {"kind": "transformer"}},
        "stages": [{"objectives": {"info_nce": 1}, "lr": 1e30, "muon_lr": 1e30, "warmup": 0}],
    }
    (tmp_path / "boom.yaml").write_text(yaml.safe_dump(recipe))
    asked = ["--data", photos, "--budget", "96 samples", "--tasks", "retrieval", "--out", "c", *SMALL]
    outcome = cli("compare", "boom.yaml", "clip", *asked)
    assert outcome.code == 1
    assert "1 of 2 runs failed" in outcome.err and re.search(r"boom: .*not finite.*lr", outcome.err)
    assert "clip:" not in outcome.err.partition("runs failed")[2]
    assert "R@1" in outcome.out and "No results from boom" in outcome.out.replace("\n", " ")
    page = (tmp_path / "c" / "report.html").read_text(encoding="utf-8")
    assert "boom" in page and "clip" in page and "not finite" in page
    json.dumps(read_json(tmp_path / "c" / "results.json"), allow_nan=False)
    assert "not finite" in (tmp_path / "c" / "boom-s0" / "log.txt").read_text()


def test_more_tasks_judge_again_and_train_nothing(cli: Cli, photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)  # one thread, on a machine that may be busy
    asked = ["compare", "clip", "--data", photos, "--budget", "32 samples", "--out", "c", *SMALL, "--tasks"]
    assert cli(*asked, "retrieval").code == 0
    trained = (tmp_path / "c" / "clip-s0" / "spent.json").stat().st_mtime_ns
    assert cli(*asked, "retrieval,embedding").code == 0
    summary = read_json(tmp_path / "c" / "clip-s0" / "evaluation" / "summary.json")
    assert {r["task"] for r in summary["results"]} == {"retrieval", "embedding"}
    assert (tmp_path / "c" / "clip-s0" / "spent.json").stat().st_mtime_ns == trained
    assert cli(*asked, "retrieval?n=2,embedding").code == 0  # other settings: evaluated again
    changed = read_json(tmp_path / "c" / "clip-s0" / "evaluation" / "summary.json")
    assert {r["n"] for r in changed["results"] if r["task"] == "retrieval"} == {2}
    assert (tmp_path / "c" / "clip-s0" / "spent.json").stat().st_mtime_ns == trained
    other = cli(*asked, "retrieval", "--eval-data", photos)
    assert other.code == 1 and "eval_data = None" in other.err


def test_all_tasks_or_the_usual_ones(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Comparison] = []
    monkeypatch.setattr("diptych.comparison.run.run_comparison", lambda c, report: asked.append(c))
    for tasks in (["--tasks", "all"], ["--tasks", "pope, vqa?n=5"], []):
        assert cli("compare", "clip", *tasks).code == 0
    assert [c.tasks for c in asked] == [list(TASKS), ["pope", "vqa?n=5"], list(DEFAULT)]
    refused = cli("compare", "clip", "--tasks", "pope,vqaa")
    assert refused.code == 1 and "did you mean 'vqa'" in refused.err and len(asked) == 3


def test_two_recipes_of_one_name_are_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(load_recipe("clip").to_yaml(), encoding="utf-8")
    outcome = cli("compare", "clip", "mine.yaml", "--budget", "32 samples", "--out", "c", *SMALL)
    assert outcome.code == 1 and "two recipes have the name 'clip'" in outcome.err
    assert not (tmp_path / "c").exists()


def test_too_little_to_judge_on_is_said_before_training(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("compare", "clip", "--data", make_photos(tmp_path / "few", 2), "--budget", "32 samples", "--out", "c", *SMALL)
    assert outcome.code == 1 and "--eval-data" in outcome.err
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_comparison_goes_on(
    photos: str, tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "c"
    small = [*SMALL, "--set", "data.image_size=32"]
    asked = ["--data", photos, "--budget", "1600 samples", "--tasks", "retrieval", "--jobs", "1", "--out", str(out), *small]
    command = [sys.executable, "-m", "diptych.cli", "compare", "clip", "siglip", *asked]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=SILENT, preexec_fn=one_core)
    deadline = time.monotonic() + 60
    while not (out / "clip-s0" / "metrics.jsonl").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, words = process.communicate(timeout=60)
    assert process.returncode == 130, words
    assert "the same command continues where it stopped" in words and "Traceback" not in words
    saved = read_json(out / "clip-s0" / "spent.json")
    assert 0 < saved["samples"] < 1600 and not saved["finished"]
    assert not (out / "siglip-s0").exists() and not (out / "results.json").exists()
    if number == signal.SIGTERM:
        return  # what follows is the same

    done = subprocess.run(command, capture_output=True, text=True, env=SILENT, timeout=120, preexec_fn=one_core)
    assert done.returncode == 0, done.stderr
    for run in (out / "clip-s0", out / "siglip-s0"):
        spent = read_json(run / "spent.json")
        assert (spent["samples"], spent["steps"], spent["finished"]) == (1600, 100, True)
        steps = [row["step"] for row in read_jsonl(run / "metrics.jsonl")]
        assert steps == sorted(set(steps)) and steps[-1] == 100
    assert {r["name"] for r in read_json(out / "results.json")["recipes"]} == {"clip", "siglip"}
    assert read_json(out / "tests.json")

    def stopped(*_: object) -> None:
        raise Interrupted("interrupted")

    monkeypatch.setattr("diptych.comparison.run.run_jobs", stopped)
    more = Comparison(["clip", "siglip", "negclip"], photos, "1600 samples", out=out, jobs=1, tasks=["retrieval"], set=small[1::2])
    with pytest.raises(Interrupted):
        run_comparison(more, build_report)
    assert [r["name"] for r in read_json(out / "results.json")["recipes"]][:2] == ["clip", "siglip"]  # what is there is reported
