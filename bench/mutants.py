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
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from threading import Lock
from typing import Any

import yaml

from bench.mutations import AREAS, ROOT, SEED, Area, Mutant, body_of, difference, drawn, mutants, mutated
from diptych.benchmarks.statistics import clopper_pearson
from diptych.config.budget import parse_budget
from diptych.core.files import read_json_or, read_jsonl, write_json, write_text

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

    def add(self, other: Coverage) -> None:
        """Take what other tests run."""
        for mine, theirs in ((self.tests, other.tests), (self.of_file, other.of_file)):
            for key, tests in theirs.items():  # type: ignore[attr-defined]
                mine.setdefault(key, set()).update(tests)  # type: ignore[call-overload]
        self.seconds |= other.seconds

    def of(self, mutant: Mutant) -> list[str]:
        """The tests that run the line, quickest first. Of a line that runs on import, 40 tests: those that run the function whose
        signature it belongs to, else those that run the file.
        """
        found = self.tests.get((mutant.file, mutant.line), set())
        if not found:
            inside = set().union(*(self.tests.get((mutant.file, line), set()) for line in body_of(ROOT / mutant.file, mutant.line)))
            some = inside or self.of_file.get(mutant.file, set())
            found = set(sorted(some, key=lambda t: self.seconds.get(t, 9.0))[:40])
        return sorted((t for t in found if t in self.seconds), key=lambda t: (self.seconds[t], t))


def coverage(name: str, area: Area) -> Coverage:
    """What the tests of an area cover. Each file of tests is measured once, and again when it, a fixture or the sources change."""
    folder = WORK / "coverage"
    folder.mkdir(parents=True, exist_ok=True)
    sources = [ROOT / "src" / "diptych" / s for s in area.sources]
    common = _digest(f for s in (*sources, *(ROOT / "tests").glob("*.py")) for f in _files(s))
    wanted = {str(f.relative_to(ROOT)): common + _digest([f]) for p in area.tests for f in _files(ROOT / p, "test_*.py")}
    index = folder / f"{name}.json"
    known: dict[str, list[str]] = read_json_or(index, {})
    if missing := [n for n, key in wanted.items() if known.get(n, [""])[0] != key]:
        print(f"{name}: which lines the tests of {len(missing)} files run …", file=sys.stderr)
        stem = f"{name}-{hashlib.sha256(''.join(wanted[n] for n in missing).encode()).hexdigest()[:12]}"
        (folder / f"{stem}.jsonl").unlink(missing_ok=True)
        packages = [f"--cov={s if s.is_dir() else s.parent}" for s in sources]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "bench.mutant_tests", "-p", "no:cacheprovider", *packages]
        environment = {
            **os.environ,
            "MUTANTS_LOG": str(folder / f"{stem}.jsonl"),
            "COVERAGE_FILE": str(folder / f"{stem}.coverage"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}",
        }
        command += ["--cov-context=test", "--cov-report=", *missing]
        subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=False)
        known |= {n: [wanted[n], stem] for n in missing}
        write_json(index, known)
    whole = Coverage(defaultdict(set), defaultdict(set), {})
    for stem in sorted({known[n][1] for n in wanted}):
        log = folder / f"{stem}.jsonl"
        seconds = {row["test"]: row["seconds"] for row in (read_jsonl(log) if log.is_file() else []) if row["passed"]}
        mine = {test: s for test, s in seconds.items() if known.get(test.partition("::")[0], ["", ""])[1] == stem}
        if mine:
            whole.add(covered(folder / f"{stem}.coverage", mine))
    return whole


def _files(path: Path, pattern: str = "*.py") -> list[Path]:
    return [path] if path.is_file() else sorted(path.rglob(pattern))


def _digest(files: Iterable[Path]) -> str:
    return hashlib.sha256("".join(f"{f}{hashlib.sha256(f.read_bytes()).hexdigest()}" for f in files).encode()).hexdigest()[:12]


def covered(data: Path, seconds: dict[str, float]) -> Coverage:
    """The content of a file of coverage.py with contexts, of the tests in ``seconds``."""
    from coverage.numbits import numbits_to_nums

    lines: dict[tuple[str, int], set[str]] = defaultdict(set)
    of_file: dict[str, set[str]] = defaultdict(set)
    with sqlite3.connect(data) as base:
        query = "select file.path, context.context, line_bits.numbits from line_bits join file on file.id = file_id join context on context.id = context_id"
        for path, context, bits in base.execute(query):
            test = context.rpartition("|")[0]
            if test not in seconds or not path.startswith(str(ROOT)):
                continue
            file = str(Path(path).relative_to(ROOT))
            of_file[file].add(test)
            for line in numbits_to_nums(bits):
                lines[file, line].add(test)
    return Coverage(lines, of_file, seconds)


# --- running them ---


class Worker:
    """Runs tests on a copy of the checkout in which one file is changed, in processes of ``bench.mutant_tests`` that fork for each
    mutant: one that has torch, the sources and the tests ``loaded`` changes functions in place; for other changes there is one that
    has torch loaded alone.
    """

    def __init__(self, number: int, *loaded: str):
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
        self.servers = [self._server(*loaded), self._server()] if loaded else [self._server()]

    def _server(self, *loaded: str) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{self.tree}:{self.tree / 'src'}",
            "PYTHONHASHSEED": "0",
        }
        command = [sys.executable, str(self.tree / "bench" / "mutant_tests.py"), *loaded]
        return subprocess.Popen(
            command, cwd=self.tree, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
        )  # fmt: skip

    def run(self, mutant: Mutant, changed: str, tests: list[str], limit: float) -> str:
        """killed, survived, timeout or not run. RuntimeError if the process that runs the tests has ended: that is no result."""
        path = self.tree / mutant.file
        code = path.read_text(encoding="utf-8")
        asked = {"tests": tests, "limit": limit, "path": str(path), "before": code, "after": changed}
        try:
            self._write(path, changed)
            for server in self.servers:
                assert server.stdin and server.stdout
                server.stdin.write(json.dumps(asked) + "\n")
                server.stdin.flush()
                if not (answer := server.stdout.readline().strip()):
                    raise RuntimeError(f"the process that runs the tests of {self.tree} has ended")
                if answer != "not here":
                    break
            return answer
        finally:
            self._write(path, code)

    def _write(self, path: Path, code: str) -> None:
        """With a time of its own, so that Python does not take the compiled file of another version."""
        path.write_text(code, encoding="utf-8")
        self.stamp += 2
        os.utime(path, (self.stamp, self.stamp))

    def close(self) -> None:
        """Ends the processes."""
        for server in self.servers:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def run_area(name: str, area: Area, end: float, jobs: int, number: int | None, again: bool = False) -> None:
    """Tries the mutants of an area that have no result yet, until the time is over. again: first those that survived, anew."""
    every = mutants(area)
    sample = drawn(area, every)[:number]
    path = RESULTS / f"{name}.jsonl"
    rows = {row["id"]: row for row in (read_jsonl(path) if path.is_file() else [])}
    alive = [m for m in sample if again and rows.get(m.id, {}).get("result") in ("survived", "not run")]
    todo = [*alive, *(m for m in sample if m.id not in rows)]
    print(f"{name}: {len(every):,} mutants, {len(sample):,} drawn, {len(todo):,} to do", file=sys.stderr)
    if not todo or time.monotonic() > end:
        return
    tests, lock, left = coverage(name, area), Lock(), iter(todo)
    path.parent.mkdir(parents=True, exist_ok=True)

    def work(number: int) -> None:
        worker = Worker(number, *sorted({test.partition("::")[0] for test in tests.seconds}))
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
                row |= {"date": f"{date.today()}", **asdict(mutant), "before": before, "after": after}
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
        f"the samples, drawn with seed {SEED} over lines; results stay valid while a file does not change. "
        f"The goal is {GOAL:.0%} found. One area alone: `make mutants AREAS=training TIME=60m`; "
        "after new tests, those not found: `python -m bench.mutants training --again`.",
        "",
        "| area | mutants tried | of | found | share | 95 % interval | not found | reason known | tried last |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    survivors: list[tuple[str, dict[str, Any]]] = []
    for name, area in AREAS.items():
        path = RESULTS / f"{name}.jsonl"
        sample = {m.id for m in drawn(area, mutants(area))}
        last = {row["id"]: row for row in (read_jsonl(path) if path.is_file() else [])}  # of a mutant tried again, the later result
        rows = [row for row in last.values() if row["id"] in sample and row["result"] != "the same"]
        counts = Counter("killed" if row["result"] in ("killed", "timeout") else "survived" for row in rows)
        alive = [row for row in rows if row["result"] not in ("killed", "timeout")]
        survivors += [(name, row) for row in alive]
        if not rows:
            lines.append(f"| {name} | 0 | {len(sample):,} | — | — | — | — | — | — |")
            continue
        share = counts["killed"] / len(rows)
        low, high = clopper_pearson(share, len(rows))
        explained = sum(row["id"] in reasons for row in alive)
        lines.append(
            f"| {name} | {len(rows):,} | {len(sample):,} | {counts['killed']:,} | {share:.1%} | {low:.1%} to {high:.1%} "
            f"| {len(alive)} | {explained} | {max(row.get('date', '') for row in rows)} |"
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
    write_text(PAGE, "\n".join([*lines, *planted()]) + "\n")


def planted() -> list[str]:
    """The lines about faults that were planted by hand, from planted.yaml; none without it."""
    path = RESULTS / "planted.yaml"
    if not path.is_file():
        return []
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    lines = ["", "## Planted by hand", "", given["about"].strip(), "", "| area | planted | found before |", "|---|---:|---:|"]
    lines += [f"| {area} | {row['planted']} | {row['found']} |" for area, row in given["areas"].items()]
    lines += ["", "| not found before | test that finds it now |", "|---|---|"]
    return lines + [f"| {row['fault']} | `{row['test']}` |" for row in given["missed"]]


def main() -> int:
    """Tries mutants for a time, then writes the page. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.mutants", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("areas", nargs="*", metavar="area", help=f"{', '.join(AREAS)}; none: all")
    parser.add_argument("--time", default="30m", help="how long, such as 30m; what is left is done the next time")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--number", type=int, help="only the first so many of each sample")
    parser.add_argument("--again", action="store_true", help="first try those that survived anew, with the tests as they are now")
    parser.add_argument("--page", action="store_true", help="only write the page")
    given = parser.parse_args()
    unknown = [name for name in given.areas if name not in AREAS]
    if unknown:
        parser.error(f"there is no area '{unknown[0]}'; there are: {', '.join(AREAS)}")
    if not given.page:
        end = time.monotonic() + (parse_budget(given.time).seconds or 0)
        for name in given.areas or AREAS:
            run_area(name, AREAS[name], end, given.jobs, given.number, given.again)
    write_page()
    print(f"written: {PAGE}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
