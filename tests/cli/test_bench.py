"""The benchmarks' harness: a wrong measure is worse than none. No figure is tested here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import report
from bench.harness import CLOCKS, ROOT, Bench, Timing, interleave, measure_memory, rate


def test_contestants_take_turns_and_ratios_are_of_the_same_round():
    order = []
    timings = interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, "b", rounds=3, warmup=1)
    assert order == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert len(timings["a"].seconds) == 3
    assert timings["b"].ratios == [1, 1, 1]
    assert timings["a"].ratios == [b / a for a, b in zip(timings["a"].seconds, timings["b"].seconds, strict=True)]


def test_waiting_is_wall_time_and_not_cpu_time():
    wait = {"wait": lambda: time.sleep(0.05)}
    assert interleave(wait, "wait", 1, 0)["wait"].median >= 0.05
    assert interleave(wait, "wait", 1, 0, "cpu")["wait"].median < 0.04


def test_spread_is_the_middle_half():
    assert Timing([1.0], [1, 2, 3, 4, 5]).spread == (2, 4)
    assert Timing([1.0], [2]).spread == (2, 2)


def test_memory_of_a_child_is_what_its_work_took():
    memory = measure_memory("tests.bench_fixture:allocate", before=60_000_000, during=150_000_000)
    assert memory.extra == pytest.approx(150_000_000, rel=0.05)
    assert memory.before > 60_000_000
    assert memory.result == 210_000_000


def test_a_failing_child_says_why():
    with pytest.raises(RuntimeError, match="no such thing"):
        measure_memory("tests.bench_fixture:fail")


def test_a_goal_is_judged_by_the_ratio_and_the_page_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(report, "PAGE", tmp_path / "docs" / "benchmarks.md")
    monkeypatch.setattr(report, "FIGURES", tmp_path / "docs" / "figures")
    passed: list[float] = []
    monkeypatch.setitem(CLOCKS, "wall", lambda: sum(passed))
    where = dict.fromkeys(("hardware", "software", "threads", "load", "date"), "?")
    for name, slow in (("one", 0.02), ("two", 0.005)):
        bench = Bench(name)
        work = {"ours": lambda: passed.append(0.01), "theirs": lambda slow=slow: passed.append(slow)}
        bench.compare("naps", work, "theirs", unit="naps", rounds=3, goals={"ours": 1.25})
        bench.figure("A line.", "<svg/>")
        report.save(bench, {"about": "Naps."}, where, f"python -m bench {name}")
    report.write_page(["one", "two", "three"])
    page = report.PAGE.read_text()
    assert page.index("## one") < page.index("## two") and "## three" not in page
    assert [g["met"] for n in ("one", "two") for g in json.loads((tmp_path / "results" / f"{n}.json").read_text())["goals"]] == [
        True,
        False,
    ]
    assert page.count("**not met**") == 2  # in the summary and in the section
    assert (tmp_path / "docs" / "figures" / "bench-one-0.svg").read_text() == "<svg/>"


def test_rates_are_short():
    assert [rate(v) for v in (0.1234, 12.34, 123.4, 12345.6)] == ["0.123", "12.3", "123", "12,346"]


CASE = """
import time
from bench import harness
from bench.harness import measure_memory

now = [0.0]

def nap():
    now[0] += {nap}

def run(bench):
    harness.CLOCKS["wall"] = lambda: now[0]
    bench.compare("naps", {{"ours": nap, "open_clip": lambda: 1 / 0}}, "open_clip", rounds=3)
    measure_memory("bench.cases.naps:prepare", n=2)
    bench.goal("always", "{nap}", True)

def prepare(n):
    return lambda: time.sleep(0.05)
"""


@pytest.mark.parametrize(("naps", "status"), [((1, 1), 0), ((1, 2), 1)])
def test_two_versions_take_turns_and_the_slower_one_is_found(tmp_path: Path, naps: tuple[int, int], status: int):
    trees = []
    for i, nap in enumerate(naps):
        tree = tmp_path / str(i)
        (tree / "src" / "diptych").mkdir(parents=True)
        (tree / "bench" / "cases").mkdir(parents=True)
        for name in ("__init__.py", "harness.py", "child.py"):
            shutil.copy(ROOT / "bench" / name, tree / "bench" / name)
        (tree / "bench" / "cases" / "naps.py").write_text(CASE.format(nap=nap))
        trees.append(str(tree))
    out = tmp_path / "rounds.json"
    command = [sys.executable, "-m", "bench.versions", *trees, "naps", "--rounds", "4", "--margin", "0.4", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    rows = {(row["what"].partition(",")[0].split(" {")[0], row["quantity"]): row for row in json.loads(out.read_text())}
    assert set(rows) == {("ours", "seconds"), ("bench.cases.naps:prepare", "seconds"), ("bench.cases.naps:prepare", "memory")}
    assert rows["ours", "seconds"]["ratio"] == pytest.approx(naps[0] / naps[1])
    assert rows["ours", "seconds"]["fine"] == (status == 0)
