"""The benchmarks' harness: a wrong measure is worse than none. No figure is tested here."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from bench import report
from bench.harness import Bench, Timing, interleave, measure_memory, rate


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
    where = dict.fromkeys(("hardware", "software", "threads", "load", "date"), "?")
    for name, slow in (("one", 0.02), ("two", 0.0)):
        bench = Bench(name)
        work = {"ours": lambda: time.sleep(0.01), "theirs": lambda slow=slow: time.sleep(slow)}
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
