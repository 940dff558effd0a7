"""Mutation testing: are the tests able to fail? ``make mutants TIME=30m``

cosmic-ray changes one operator, comparison, number or condition of the source at a time; the tests of its folder that run the
changed line should then fail. Of each area a seeded sample is drawn, or, for small ones, every mutant is tried. What is done is
kept in bench/results/mutants and not done again while the source file stays the same. The page docs/mutants.md lists the share that
was found, with its interval, and every mutant that was not. A survivor that cannot matter has its reason in
bench/results/mutants/reasons.yaml.

Tests run on copies of the checkout in runs/mutants, one for each worker.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import yaml

from bench.mutations import AREAS, ROOT, SEED, Area, Mutant, difference, drawn, mutants, mutated
from diptych.benchmarks.statistics import clopper_pearson
from diptych.config.budget import parse_budget
from diptych.core.files import read_jsonl, write_text

RESULTS = Path(__file__).parent / "results" / "mutants"
WORK = ROOT / "runs" / "mutants"
PAGE = ROOT / "docs" / "mutants.md"
GOAL = 0.9
COPIED = ("src", "tests", "bench", "docs", "examples", "README.md", "pyproject.toml", "constraints.txt", "Makefile")


# --- which tests run a line ---


@dataclass
class Coverage:
    """The tests that run each line, and the seconds of each test."""

    tests: dict[tuple[str, int], set[str]]
    of_file: dict[str, set[str]]
    seconds: dict[str, float]

    def of(self, mutant: Mutant) -> list[str]:
        """The tests that run the line, quickest first. A line that runs on import: some tests that run the file."""
        found = self.tests.get((mutant.file, mutant.line), set())
        chosen = found or set(sorted(self.of_file.get(mutant.file, set()), key=lambda t: self.seconds.get(t, 9.0))[:40])
        return sorted((t for t in chosen if t in self.seconds), key=lambda t: (self.seconds[t], t))


def coverage(name: str, area: Area) -> Coverage:
    """What the tests of an area cover; measured once, and again when sources or tests have changed."""
    folder = WORK / "coverage"
    folder.mkdir(parents=True, exist_ok=True)
    files = [
        f
        for p in (*area.tests, *(f"src/diptych/{s}" for s in area.sources))
        for f in ([ROOT / p] if (ROOT / p).is_file() else sorted((ROOT / p).rglob("*.py")))
    ]
    key = hashlib.sha256("".join(f"{f}{hashlib.sha256(f.read_bytes()).hexdigest()}" for f in files).encode()).hexdigest()[:12]
    data, log = folder / f"{name}-{key}.coverage", folder / f"{name}-{key}.jsonl"
    if not (folder / f"{name}-{key}.done").is_file():
        print(f"{name}: which tests run which lines …", file=sys.stderr)
        log.unlink(missing_ok=True)
        packages = [
            f"--cov={ROOT / 'src' / 'diptych' / s if (ROOT / 'src' / 'diptych' / s).is_dir() else (ROOT / 'src' / 'diptych' / s).parent}"
            for s in area.sources
        ]
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "bench.mutant_tests",
            "-p",
            "no:cacheprovider",
            *packages,
            "--cov-context=test",
            "--cov-report=",
            *area.tests,
        ]
        environment = {
            **os.environ,
            "MUTANTS_LOG": str(log),
            "COVERAGE_FILE": str(data),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}",
        }
        subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=False)
        write_text(folder / f"{name}-{key}.done", "")
    seconds = {row["test"]: row["seconds"] for row in read_jsonl(log) if row["passed"]}
    return covered(data, seconds)


def covered(data: Path, seconds: dict[str, float]) -> Coverage:
    """The content of a file of coverage.py with contexts."""
    from coverage.numbits import numbits_to_nums

    lines: dict[tuple[str, int], set[str]] = defaultdict(set)
    of_file: dict[str, set[str]] = defaultdict(set)
    with sqlite3.connect(data) as base:
        query = "select file.path, context.context, line_bits.numbits from line_bits join file on file.id = file_id join context on context.id = context_id"
        for path, context, bits in base.execute(query):
            test = context.rpartition("|")[0]
            if not test or not path.startswith(str(ROOT)):
                continue
            file = str(Path(path).relative_to(ROOT))
            of_file[file].add(test)
            for line in numbits_to_nums(bits):
                lines[file, line].add(test)
    return Coverage(lines, of_file, seconds)


# --- running them ---


class Worker:
    """Runs tests on a copy of the checkout in which one file is changed, in a process of ``bench.mutant_tests``."""

    def __init__(self, number: int):
        self.tree = WORK / f"tree-{number}"
        shutil.rmtree(self.tree, ignore_errors=True)
        self.tree.mkdir(parents=True)
        for name in COPIED:
            place = ROOT / name
            if place.is_dir():
                shutil.copytree(place, self.tree / name, ignore=shutil.ignore_patterns("__pycache__", ".peers", ".datajuicer"))
            elif place.is_file():
                shutil.copy(place, self.tree / name)
        self.stamp = time.time()
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{self.tree}:{self.tree / 'src'}",
            "PYTHONHASHSEED": "0",
        }
        self.server = subprocess.Popen(
            [sys.executable, str(self.tree / "bench" / "mutant_tests.py")], cwd=self.tree, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
        )  # fmt: skip

    def run(self, mutant: Mutant, changed: str, tests: list[str], limit: float) -> str:
        """killed, survived, timeout or not run. RuntimeError if the process that runs the tests has ended: that is no result."""
        path = self.tree / mutant.file
        code = path.read_text(encoding="utf-8")
        try:
            self._write(path, changed)
            assert self.server.stdin and self.server.stdout
            self.server.stdin.write(json.dumps({"tests": tests, "limit": limit}) + "\n")
            self.server.stdin.flush()
            if not (answer := self.server.stdout.readline().strip()):
                raise RuntimeError(f"the process that runs the tests of {self.tree} has ended")
            return answer
        finally:
            self._write(path, code)

    def _write(self, path: Path, code: str) -> None:
        """With a time of its own, so that Python does not take the compiled file of another version."""
        path.write_text(code, encoding="utf-8")
        self.stamp += 2
        os.utime(path, (self.stamp, self.stamp))

    def close(self) -> None:
        """Ends the process."""
        os.killpg(self.server.pid, signal.SIGKILL)
        self.server.wait()


def run_area(name: str, area: Area, end: float, jobs: int, number: int | None) -> None:
    """Tries the mutants of an area that have no result yet, until the time is over."""
    every = mutants(area)
    sample = drawn(area, every)[:number]
    path = RESULTS / f"{name}.jsonl"
    known = {row["id"] for row in (read_jsonl(path) if path.is_file() else [])}
    todo = [m for m in sample if m.id not in known]
    print(f"{name}: {len(every):,} mutants, {len(sample):,} drawn, {len(todo):,} to do", file=sys.stderr)
    if not todo or time.monotonic() > end:
        return
    tests, lock, left = coverage(name, area), Lock(), iter(todo)
    path.parent.mkdir(parents=True, exist_ok=True)

    def work(number: int) -> None:
        worker = Worker(number)
        try:
            while time.monotonic() < end:
                with lock:
                    mutant = next(left, None)
                if mutant is None:
                    return
                began, chosen = time.monotonic(), tests.of(mutant)
                code = (ROOT / mutant.file).read_text(encoding="utf-8")
                changed = mutated(code, f"core/{mutant.operator}", mutant.occurrence)
                before, after = difference(code, changed or code)
                limit = 60 + 10 * sum(tests.seconds[t] for t in chosen)
                result = "the same" if changed is None else worker.run(mutant, changed, chosen, limit) if chosen else "not run"
                row = {"id": mutant.id, "result": result, "tests": len(chosen), "seconds": round(time.monotonic() - began, 1)}
                row |= {**asdict(mutant), "before": before, "after": after}
                with lock, path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                print(f"  {result:9} {mutant.file}:{mutant.line} {before[:60]} → {after[:60]}", file=sys.stderr)
        finally:
            worker.close()

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(work, range(jobs)))


# --- the page ---


def write_page() -> None:
    """Writes docs/mutants.md from the results."""
    reasons = (
        yaml.safe_load((RESULTS / "reasons.yaml").read_text(encoding="utf-8")) or {} if (RESULTS / "reasons.yaml").is_file() else {}
    )
    lines = [
        "# Mutation testing",
        "",
        "One operator, comparison, number or condition of the source is changed at a time; the tests of its folder should then "
        "fail. `make mutants` continues "
        f"the samples, drawn with seed {SEED} over lines; results stay valid while a file does not change. The goal is {GOAL:.0%} found.",
        "",
        "| area | mutants tried | of | found | 95 % interval | not found | reason known |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    survivors: list[tuple[str, dict[str, Any]]] = []
    for name, area in AREAS.items():
        path = RESULTS / f"{name}.jsonl"
        sample = {m.id for m in drawn(area, mutants(area))}
        rows = [row for row in (read_jsonl(path) if path.is_file() else []) if row["id"] in sample and row["result"] != "the same"]
        counts = Counter("killed" if row["result"] in ("killed", "timeout") else "survived" for row in rows)
        alive = [row for row in rows if row["result"] not in ("killed", "timeout")]
        survivors += [(name, row) for row in alive]
        if not rows:
            lines.append(f"| {name} | 0 | {len(sample):,} | — | — | — | — |")
            continue
        share = counts["killed"] / len(rows)
        low, high = clopper_pearson(share, len(rows))
        explained = sum(row["id"] in reasons for row in alive)
        lines.append(
            f"| {name} | {len(rows):,} | {len(sample):,} | {share:.1%} | {low:.1%} to {high:.1%} | {len(alive)} | {explained} |"
        )
    lines += [
        "",
        "## Not found",
        "",
        "*not run*: no test of the folder runs the line.",
        "",
        "| area | where | change | reason |",
        "|---|---|---|---|",
    ]
    for name, row in sorted(survivors, key=lambda pair: (pair[0], pair[1]["file"], pair[1]["line"])):
        why = reasons.get(row["id"], "not run" if row["result"] == "not run" else "")
        change = f"`{row['before']}` → `{row['after']}`".replace("|", "\\|")
        lines.append(f"| {name} | `{row['file'].removeprefix('src/diptych/')}:{row['line']}` ({row['id']}) | {change} | {why} |")
    write_text(PAGE, "\n".join(lines) + "\n")


def main() -> int:
    """Tries mutants for a time, then writes the page. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.mutants", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("areas", nargs="*", metavar="area", help=f"{', '.join(AREAS)}; none: all")
    parser.add_argument("--time", default="30m", help="how long, such as 30m; what is left is done the next time")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--number", type=int, help="only the first so many of each sample")
    parser.add_argument("--page", action="store_true", help="only write the page")
    given = parser.parse_args()
    unknown = [name for name in given.areas if name not in AREAS]
    if unknown:
        parser.error(f"there is no area '{unknown[0]}'; there are: {', '.join(AREAS)}")
    if not given.page:
        end = time.monotonic() + (parse_budget(given.time).seconds or 0)
        for name in given.areas or AREAS:
            run_area(name, AREAS[name], end, given.jobs, given.number)
    write_page()
    print(f"written: {PAGE}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
