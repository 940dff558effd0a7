"""How things are measured: contestants take turns, so that whatever else the machine does strikes all of them alike.

A case is a file in ``cases/`` with ``run(bench: Bench)``: it measures, and tells ``bench`` what to publish.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


@dataclass
class Timing:
    """One contestant's rounds, in seconds, and how it stands to the baseline, round by round."""

    seconds: list[float]
    ratios: list[float] = field(default_factory=list)  # baseline's seconds / own, of the same round: above 1 is faster

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """The middle half of the ratios."""
        if len(self.ratios) < 2:
            return self.ratios[0], self.ratios[0]
        low, _, high = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return low, high


def cpu_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in usages)


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": cpu_seconds}


def interleave(
    contestants: dict[str, Callable[[], Any]], baseline: str, rounds: int, warmup: int = 1, clock: str = "wall"
) -> dict[str, Timing]:
    """Run the contestants A B A B …, every other round backwards, and time each turn."""
    now = CLOCKS[clock]
    for _ in range(warmup):
        for work in contestants.values():
            work()
    timings = {name: Timing([]) for name in contestants}
    for i in range(rounds):
        for name in list(contestants) if i % 2 == 0 else reversed(contestants):
            gc.collect()
            began = now()
            contestants[name]()
            timings[name].seconds.append(now() - began)
    for timing in timings.values():
        timing.ratios = [b / own for b, own in zip(timings[baseline].seconds, timing.seconds, strict=True)]
    return timings


@dataclass
class Memory:
    """What a child process took: resident bytes when set up, at the peak of the work, and the difference."""

    before: int
    peak: int
    seconds: float
    result: Any = None

    @property
    def extra(self) -> int:
        return self.peak - self.before


def measure_memory(target: str, timeout: float = 600, **arguments: Any) -> Memory:
    """Peak memory of ``target`` ("package.module:function") in a process of its own.

    The function is called with ``arguments`` (JSON) and returns the work, a callable without arguments: what is allocated before it
    starts is not counted as extra. What the work returns comes back as ``result`` if JSON can hold it.
    """
    command = [sys.executable, "-m", "bench.child", target, json.dumps(arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        raise RuntimeError(f"{target}({arguments}) failed:\n{done.stderr[-2000:]}")
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


@dataclass
class Table:
    columns: list[str]
    rows: list[list[str]]
    title: str = ""


@dataclass
class Goal:
    text: str
    measured: str
    met: bool


class Bench:
    """What a case measured. Figures are text by the time they get here: a case knows its units."""

    def __init__(self, name: str, quick: bool = False):
        self.name, self.quick = name, quick
        self.tables: list[Table] = []
        self.goals: list[Goal] = []
        self.notes: list[str] = []
        self.figures: dict[str, str] = {}  # caption: SVG
        self.numbers: dict[str, Any] = {}  # raw, for scripts

    def compare(
        self,
        title: str,
        contestants: dict[str, Callable[[], Any]],
        baseline: str,
        *,
        work: float = 1,
        unit: str = "runs",
        rounds: int = 7,
        warmup: int = 1,
        clock: str = "wall",
        goals: dict[str, float] | None = None,
    ) -> dict[str, Timing]:
        """Time the contestants in turns, and publish a table: rate, ratio to the baseline, spread.

        work: how many ``unit`` one call does. goals: least ratio by contestant.
        """
        timings = interleave(contestants, baseline, 3 if self.quick else rounds, warmup, clock)
        per = "s" if clock == "wall" else "CPU-s"
        rows = []
        for name, t in timings.items():
            low, high = t.spread
            ratio = "1" if name == baseline else f"{t.ratio:.2f}× [{low:.2f}–{high:.2f}]"
            rows.append([name, rate(work / t.median), f"{t.median / work * 1000:.3g}", ratio])
            print(f"  {title}: {name}: {rate(work / t.median)} {unit}/{per}, {ratio}", flush=True)
        self.table(["", f"{unit}/{per}", f"ms of {clock} time each", f"relative to {baseline}"], rows, title)
        self.numbers[title] = {name: {"seconds": t.seconds, "ratio": t.ratio, "work": work} for name, t in timings.items()}
        for name, least in (goals or {}).items():
            t = timings[name]
            self.goal(f"{title}: {name} ≥ {least:g}× {baseline}", f"{t.ratio:.2f}×", t.ratio >= least)
        return timings

    def table(self, columns: list[str], rows: list[list[str]], title: str = "") -> None:
        self.tables.append(Table(columns, rows, title))

    def goal(self, text: str, measured: str, met: bool) -> None:
        print(f"  goal {'met' if met else 'NOT met'}: {text}: {measured}", flush=True)
        self.goals.append(Goal(text, measured, bool(met)))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def figure(self, caption: str, svg: str) -> None:
        self.figures[caption] = svg

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "tables": [asdict(t) for t in self.tables],
            "goals": [asdict(g) for g in self.goals],
            "notes": self.notes,
            "figures": self.figures,
            "numbers": self.numbers,
        }


def rate(value: float) -> str:
    """Three figures, and no exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def megabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def environment() -> dict[str, str]:
    """Where a figure was taken."""
    import platform

    import torch

    cpu, flags, memory = platform.machine(), "", 0.0
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        fields = {k.strip(): v.strip() for k, v in lines.items()}
        cpu = fields.get("model name", cpu)
        known = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX"}
        flags = ", ".join(label for flag, label in known.items() if flag in fields.get("flags", "").split())
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    return {
        "hardware": f"{os.cpu_count()} cores of {cpu} ({flags}), {memory:.0f} GiB{gpu}",
        "software": f"Python {platform.python_version()}, torch {torch.__version__}",
        "threads": f"{torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}",
        "load": f"load {os.getloadavg()[0]:.1f} at the start",
        "date": time.strftime("%Y-%m-%d"),
    }
