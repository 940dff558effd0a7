"""What is shown while long work runs: progress bars on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from diptych.core.extras import installed

QUIET_SECONDS = 20.0  # between lines where there is no terminal
_shown: list[Progress] = []  # on a terminal now, innermost last; two that are drawn at once would write over each other


def live(console: Console) -> bool:
    """Whether bars can be drawn: on a terminal, and in a notebook that has ipywidgets. Elsewhere lines are printed now and then."""
    return console.is_terminal or (console.is_jupyter and installed("ipywidgets"))


def describe(state: dict[str, Any]) -> str:
    """loss, rate and time left, as far as they are known"""
    parts = [str(state.get("phase", ""))]
    if "loss" in state and parts[0].startswith(("training", "backbone")):
        parts.append(f"loss {state['loss']:.3f}")
        parts.append(f"{state['samples_per_second']:.0f} samples/s")
        if 0.02 < state["share"] < 1:
            parts.append(f"{state['seconds'] * (1 / state['share'] - 1):.0f} s left")
    return " · ".join(parts)


def _kind(phase: str) -> str:
    """ "judging pope 32/100" → "judging pope": a log does not need a line for each count."""
    return " ".join(phase.split()[:2])


class JobsDisplay:
    """One row per job; the caller updates the states in place."""

    def __init__(self, jobs: list[tuple[str, dict[str, Any]]]):
        self.jobs = jobs
        self.console = Console(stderr=True)
        self.live = live(self.console)
        self.began = self.printed_at = time.monotonic()
        self.progress = Progress(
            TextColumn("{task.fields[label]:<14}"),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=self.console,
            refresh_per_second=2,
        )
        self.rows = [self.progress.add_task("", total=1.0, start=False, label=label, note="waiting") for label, _ in jobs]
        self.phases = [""] * len(jobs)

    def __enter__(self) -> JobsDisplay:
        if self.live:
            self.progress.start()
            _shown.append(self.progress)
        return self

    def __exit__(self, *details: object) -> None:
        self.update(last=True)
        if self.live:
            _shown.remove(self.progress)
            self.progress.stop()

    def update(self, last: bool = False) -> None:
        """Show the state of the jobs."""
        due = time.monotonic() - self.printed_at > QUIET_SECONDS
        for i, (row, (label, state)) in enumerate(zip(self.rows, self.jobs, strict=True)):
            note = describe(state)
            phase = str(state["phase"])
            if phase not in ("waiting", self.phases[i]):
                self.progress.start_task(row)
            if self.live:
                self.progress.update(row, completed=state.get("share", 0.0), note=note)
                if phase in ("done", "failed"):
                    self.progress.stop_task(row)
            elif _kind(phase) != _kind(self.phases[i]) or (due and phase not in ("waiting", "done", "failed")):
                print(
                    f"[{time.monotonic() - self.began:5.0f} s] {label:<14} {state.get('share', 0):4.0%} {note}",
                    file=sys.stderr,
                    flush=True,
                )
                self.printed_at = time.monotonic()
            self.phases[i] = phase


class TrainingDisplay:
    """A bar for one training run: use as the ``progress`` of ``train``."""

    def __init__(self, name: str):
        self.state: dict[str, Any] = {"phase": "setting up", "share": 0.0}
        self.display = JobsDisplay([(name, self.state)])

    def __enter__(self) -> TrainingDisplay:
        self.display.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self.display.__exit__(*details)

    def __call__(self, row: dict[str, Any]) -> None:
        self.state.update({"phase": "training", **row})
        self.display.update()


class CountDisplay:
    """Items done of a known number, with their rate and the time left: ``display(done)``, as often as you like.

    done: finished in an earlier run; they count as done, but not towards the rate. Within a display of jobs it is a row of that
    display.
    """

    def __init__(self, label: str, total: int, done: int = 0, unit: str = "items", disable: bool = False):
        self.label, self.total, self.first, self.unit, self.disable = label, total, done, unit, disable
        console = Console(stderr=True)
        self.live = live(console)
        self.within = bool(_shown) and self.live and not disable
        if self.within:
            self.progress = _shown[-1]
        else:
            columns = (TextColumn(label), BarColumn(bar_width=30), TaskProgressColumn(), TextColumn("{task.fields[note]}"))
            self.progress = Progress(*columns, TimeElapsedColumn(), console=console, refresh_per_second=4, disable=disable)
        self.row = self.progress.add_task("", total=total, completed=done, label=label, note="")
        self.printed = -1  # how many were done when a line was last printed
        self.done, self.began = done, time.monotonic()
        self.printed_at = self.began

    def __enter__(self) -> CountDisplay:
        if self.live and not self.within:
            self.progress.start()
        return self

    def __exit__(self, *details: object) -> None:
        if self.live or self.printed != self.done:
            self._say()
        if self.within:
            self.progress.remove_task(self.row)
        elif self.live:
            self.progress.stop()

    def __call__(self, done: int) -> None:
        self.done = done
        if not self.disable and time.monotonic() - self.printed_at > (0.25 if self.live else QUIET_SECONDS):
            self._say()

    def _say(self) -> None:
        self.printed_at, self.printed = time.monotonic(), self.done
        rate = (self.done - self.first) / max(self.printed_at - self.began, 1e-9)
        left = f" · {(self.total - self.done) / rate:,.0f} s left" if rate and self.done < self.total else ""
        note = f"{self.done:,} of {self.total:,} {self.unit} · {rate:,.0f}/s{left}"
        if self.live:
            self.progress.update(self.row, completed=self.done, note=note)
        elif not self.disable:
            print(f"[{self.printed_at - self.began:5.0f} s] {self.label}: {note}", file=sys.stderr, flush=True)
