"""Compare the speed and memory of two versions of Diptych, which take turns on this machine.

``python -m bench.versions 4da3e92 . training large-batch generation --rounds 10``

A version is a commit, or a directory that holds ``src/diptych`` and ``bench``. Each version runs its own benchmark cases in a
process of its own, which stops before each measurement and waits. The parent lets the two processes measure the same thing one
after the other, A B B A …, ``--rounds`` times each: only one of them computes at a time. Peers (open_clip, transformers) are
built by their cases and left out.

The ratio is A's seconds or bytes to B's of the same round, so that above 1 is better: the geometric mean over the rounds with its
95 % interval (Student's t on the logarithms). Seconds are by the clock of the case; processor time is listed too, since it depends
less on what else the machine does. The exit status is 1 if an interval lies wholly beyond ``--margin`` (3 %) worse. Cases without a
clock, such as ``exactness``, are run once by each version, and their goals are listed next to each other."""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SHORT = 0.01  # seconds; processor time below it is too coarse to compare
PEERS = (
    "open_clip",
    "transformers",
    "reading again",
    "without cache",
)  # other libraries, and plain forms that a case compares with


# --- the child: runs one case of its own version, and waits before each measurement ---


def child(case: str, quick: bool) -> None:
    """Run a case. Each measurement is one line on stdout with its name; ``go`` on stdin runs it, ``next`` leaves it."""
    spoken, sys.stdout = sys.stdout, sys.stderr  # what a case prints is not part of the exchange
    harness: Any = importlib.import_module("bench.harness")

    def say(row: dict[str, Any]) -> None:
        print(json.dumps(row), file=spoken, flush=True)

    def turns(name: str, work: Callable[[], dict[str, float]]) -> list[dict[str, float]]:
        """Measure as often as the parent asks."""
        say({"ready": name})
        found = []
        while sys.stdin.readline().strip() == "go":
            found.append(work())
            say(found[-1])
        return found

    compared: list[int] = []  # the comparisons so far

    def interleave(contestants: dict[str, Any], baseline: str, rounds: int, warmup: int = 1, clock: str = "wall") -> Any:
        timings = {}
        compared.append(len(contestants))
        for name, work in contestants.items():
            seconds = [1.0]
            if not name.startswith(PEERS):
                for _ in range(warmup):
                    work()

                def timed(work: Callable[[], Any] = work) -> dict[str, float]:
                    gc.collect()
                    cpu, began = harness.cpu_seconds(), harness.CLOCKS[clock]()
                    work()
                    found = {"seconds": harness.CLOCKS[clock]() - began}
                    cpu = harness.cpu_seconds() - cpu
                    return found | {"cpu seconds": cpu} if cpu > SHORT and clock != "cpu" else found

                seconds = [row["seconds"] for row in turns(f"{name}, comparison {len(compared)}", timed)] or seconds
            timings[name] = harness.Timing(seconds, [1.0])
        return timings

    measure = harness.measure_memory

    def measure_memory(target: str, timeout: float = 600, **arguments: Any) -> Any:
        taken: list[Any] = []

        def memory() -> dict[str, float]:
            taken.append(measure(target, timeout, **arguments))
            return {"seconds": taken[-1].seconds, "memory": taken[-1].peak}

        if arguments.get("who") in PEERS:
            memory()
        else:
            turns(f"{target} {json.dumps({k: v for k, v in arguments.items() if k != 'root'})}", memory)
        return taken[-1]

    harness.interleave, harness.measure_memory = interleave, measure_memory
    bench = harness.Bench(case, quick)
    importlib.import_module(f"bench.cases.{case.replace('-', '_')}").run(bench)
    say({"done": [[goal.text, goal.measured] for goal in bench.goals]})


# --- the parent: lets both children measure in turns ---


class Version:
    """A case that runs in one version's process."""

    def __init__(self, tree: Path, case: str, quick: bool):
        environment = {**os.environ, "PYTHONPATH": f"{tree / 'src'}:{tree}"}
        command = [sys.executable, str(HERE / "versions.py"), "--child", case, "quick" if quick else "whole"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=tree, env=environment, stdin=pipe, stdout=pipe, text=True)
        self.case = case

    def read(self) -> dict[str, Any]:
        """The next line."""
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise SystemExit(f"{self.case}: the process of one version ended with status {self.process.wait()}")
        return dict(json.loads(line))

    def say(self, word: str) -> None:
        print(word, file=self.process.stdin, flush=True)


def compared(case: str, trees: tuple[Path, Path], rounds: int, quick: bool, margin: float) -> list[dict[str, Any]]:
    """One row for each measurement of a case: its name, the mean ratio with its interval, and whether it is within the margin."""
    versions = [Version(tree, case, quick) for tree in trees]
    rows = []
    while True:
        at = [v.read() for v in versions]
        if "done" in at[0] and "done" in at[1]:
            break
        if at[0] != at[1]:
            raise SystemExit(f"{case}: the versions measure different things: {at[0]} and {at[1]}")
        found: list[list[dict[str, float]]] = [[], []]
        for i in range(rounds):
            for k in (0, 1) if i % 2 == 0 else (1, 0):
                versions[k].say("go")
                found[k].append(versions[k].read())
        for v in versions:
            v.say("next")
        for quantity in [q for q in found[0][0] if all(q in row for side in found for row in side)]:
            a, b = ([row[quantity] for row in side] for side in found)
            better = [x / y for x, y in zip(a, b, strict=True)]
            row = {"case": case, "what": at[0]["ready"], "quantity": quantity, "first": a, "second": b, **interval(better)}
            row["fine"] = row["high"] >= 1 - margin
            rows.append(row)
            print(f"  {row['what']}: {quantity} {row['ratio']:.3f}x [{row['low']:.3f}, {row['high']:.3f}]", flush=True)
    for v in versions:
        v.process.wait()
    for goal in (at[0]["done"], at[1]["done"]) if not rows else ():
        print("  " + "; ".join(": ".join(g) for g in goal), flush=True)
    return rows


def interval(ratios: list[float]) -> dict[str, float]:
    """Geometric mean of the ratios, and its 95 % interval."""
    from scipy.stats import t as student

    logs = [math.log(r) for r in ratios]
    mean = statistics.fmean(logs)
    half = float(student.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / len(logs) ** 0.5 if len(logs) > 1 else math.inf
    return {"ratio": math.exp(mean), "low": math.exp(mean - half), "high": math.exp(mean + half)}


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3] == "quick")
        return 0
    from bench.losses import tree_of  # here: the child of an older version has no such module

    parser = argparse.ArgumentParser(prog="python -m bench.versions", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("first", help="a commit, or a directory with src/diptych and bench")
    parser.add_argument("second", help="the same; `.` is the working tree")
    parser.add_argument("cases", nargs="+", metavar="case")
    parser.add_argument("--rounds", type=int, default=10, help="measurements of each version (default 10)")
    parser.add_argument("--margin", type=float, default=0.03, help="how much worse the second version may be (default 0.03)")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--out", type=Path, help="write all rounds to this JSON file")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        first, second = (stack.enter_context(tree_of(v)) for v in (arguments.first, arguments.second))
        for tree in (first, second):
            if not (tree / "bench" / ".peers").exists():
                (tree / "bench" / ".peers").symlink_to(HERE / ".peers")
        for case in arguments.cases:
            print(f"{case} …", flush=True)
            rows += compared(case, (first, second), arguments.rounds, arguments.quick, arguments.margin)
            if arguments.out:
                arguments.out.write_text(json.dumps(rows, indent=1) + "\n")
    worse = [row for row in rows if not row["fine"]]
    print(f"{len(rows)} measurements, {len(worse)} worse by more than {arguments.margin:.0%}")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
