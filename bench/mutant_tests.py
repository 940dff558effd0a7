"""Runs tests on a changed checkout, for ``bench.mutants``: a process that has torch loaded and forks for each mutant.

It imports nothing of diptych: a module that is loaded before the fork would be the unchanged one in every fork. A process that has
files of tests to load is the exception: its forks make the change in place (``bench.inplace``), or answer that they cannot.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.inplace import patch

PASSED, NOT_FOUND, NONE_COLLECTED = 0, 4, 5  # exit statuses of pytest
FLAGS = ["-q", "-p", "no:cacheprovider", "-p", "no:cov", "-m", ""]
NOT_HERE = 77  # the exit status of a fork that cannot make the change in place
WAITING = 10  # a test ends at its limit of the processor's time; one that waits for something else, after so many times as long
Change = tuple[str, str, str]  # path of a file, its source before and after


def pytest_runtest_logreport(report: Any) -> None:
    """As a plugin of pytest (``-p bench.mutant_tests``): writes how long each test took, and whether it passed, to $MUTANTS_LOG."""
    log = os.environ.get("MUTANTS_LOG")
    if log and report.when == "call":
        with Path(log).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"test": report.nodeid, "seconds": report.duration, "passed": report.passed}) + "\n")


class Listing:
    """A plugin that writes the ids of the tests that pytest finds."""

    def __init__(self, path: Path):
        self.path = path

    def pytest_collection_finish(self, session: Any) -> None:
        """Writes them, one a line."""
        self.path.write_text("".join(f"{item.nodeid}\n" for item in session.items), encoding="utf-8")


def load(tests: list[str]) -> None:
    """Has pytest import these files of tests, so that forks need not."""
    import pytest

    pytest.main([*tests, *FLAGS, "--collect-only"])


def forked(arguments: list[str], limit: float, change: Change | None = None, plugins: list[Any] | None = None) -> int | None:
    """The exit status of pytest in a fork; None if it takes more than ``limit`` seconds of the processor, or waits ``WAITING``
    times as long. change: made in place before; the status is ``NOT_HERE`` if it cannot be.
    """
    import pytest

    child = os.fork()
    if child == 0:
        os.setsid()
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        if change and not patch(*change):
            os._exit(NOT_HERE)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        seconds = max(1, int(limit))  # of the processor: other programs may keep the test waiting
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
        os._exit(int(pytest.main([*arguments, *FLAGS], plugins=plugins)))
    end, status = time.monotonic() + WAITING * limit, None
    while status is None and time.monotonic() < end:
        done, code = os.waitpid(child, os.WNOHANG)
        status = os.waitstatus_to_exitcode(code) if done else None
        time.sleep(0.02)
    if status is None:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return None if status in (-signal.SIGXCPU, -signal.SIGKILL) else status


def outcome(tests: list[str], limit: float, change: Change | None = None) -> str:
    """What the tests say of the checkout in the working directory: killed, survived, timeout, or not run. limit: seconds of the
    processor, of all that is run. change: made in place, in what is loaded; "not here" if it cannot be.

    A test that is not there (its id comes from what was changed, or it was renamed) has not failed: pytest then runs none at all,
    so the others are run without it. A file of tests that cannot be read is a mutant that was noticed."""
    before = _seconds_of_forks()

    def left() -> float:
        return max(1.0, limit - (_seconds_of_forks() - before))

    status = forked([*tests, "-x"], limit, change)
    if status == NOT_FOUND:
        with tempfile.TemporaryDirectory() as folder:
            listed = Path(folder) / "ids.txt"
            files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
            read = forked([*files, "--collect-only"], left(), change, [Listing(listed)])
            found = set(listed.read_text(encoding="utf-8").splitlines()) if listed.is_file() else set()
        if read is None:
            return "timeout"
        if read != PASSED:
            return "killed"
        there = [test for test in tests if test in found]
        status = forked([*there, "-x"], left(), change) if there else NONE_COLLECTED
    if status is None:
        return "timeout"
    return {PASSED: "survived", NONE_COLLECTED: "not run", NOT_HERE: "not here"}.get(status, "killed")


def _seconds_of_forks() -> float:
    """The processor's time that the forks that have ended took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def serve(loaded: list[str]) -> None:
    """Reads {"tests", "limit", "path", "before", "after"} lines and answers each with ``outcome``. loaded: files of tests that are
    loaded before; changes are then made in place.
    """
    import numpy  # noqa: F401
    import pytest  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what pytest prints is no answer
    if loaded:
        load(loaded)
    for line in sys.stdin:
        asked = json.loads(line)
        change = (asked["path"], asked["before"], asked["after"]) if loaded else None
        print(outcome(asked["tests"], asked["limit"], change), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1:])
