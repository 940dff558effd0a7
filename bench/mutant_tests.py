"""Runs tests on a changed checkout, for ``bench.mutants``: a process that has torch loaded and forks for each mutant.

It imports nothing of diptych: a module that is loaded before the fork would be the unchanged one in every fork.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PASSED, NOT_FOUND, NONE_COLLECTED = 0, 4, 5  # exit statuses of pytest
FLAGS = ["-q", "-p", "no:cacheprovider", "-p", "no:cov", "-m", ""]


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


def forked(arguments: list[str], limit: float, plugins: list[Any] | None = None) -> int | None:
    """The exit status of pytest in a fork; None if it takes longer than ``limit`` seconds."""
    import pytest

    child = os.fork()
    if child == 0:
        os.setsid()
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os._exit(int(pytest.main([*arguments, *FLAGS], plugins=plugins)))
    end, status = time.monotonic() + limit, None
    while status is None and time.monotonic() < end:
        done, code = os.waitpid(child, os.WNOHANG)
        status = os.waitstatus_to_exitcode(code) if done else None
        time.sleep(0.02)
    if status is None:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return status


def outcome(tests: list[str], limit: float) -> str:
    """What the tests say of the checkout in the working directory: killed, survived, timeout, or not run.

    A test that is not there (its id comes from what was changed, or it was renamed) has not failed: pytest then runs none at all,
    so the others are run without it. A file of tests that cannot be read is a mutant that was noticed."""
    end = time.monotonic() + limit
    status = forked([*tests, "-x"], limit)
    if status == NOT_FOUND:
        with tempfile.TemporaryDirectory() as folder:
            listed = Path(folder) / "ids.txt"
            files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
            read = forked([*files, "--collect-only"], max(1.0, end - time.monotonic()), [Listing(listed)])
            found = set(listed.read_text(encoding="utf-8").splitlines()) if listed.is_file() else set()
        if read is None:
            return "timeout"
        if read != PASSED:
            return "killed"
        left = [test for test in tests if test in found]
        status = forked([*left, "-x"], max(1.0, end - time.monotonic())) if left else NONE_COLLECTED
    if status is None:
        return "timeout"
    return {PASSED: "survived", NONE_COLLECTED: "not run"}.get(status, "killed")


def serve() -> None:
    """Reads {"tests", "limit"} lines and answers each with ``outcome``."""
    import numpy  # noqa: F401
    import pytest  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        asked = json.loads(line)
        print(outcome(asked["tests"], asked["limit"]), flush=True)


if __name__ == "__main__":
    serve()
