"""``choose`` on a disk that is full: said in one line, nothing half-written, and the same command continues when there is room."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from choose_fixture import MODEL, class_folders

resource = pytest.importorskip("resource")
LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
sys.argv = ["diptych", *sys.argv[2:]]
from diptych.cli import main
main()
"""


def run(limit: int, cache: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command where no file may be longer than ``limit`` bytes, as on a disk without room for more."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    given = {**os.environ, "DIPTYCH_CACHE": str(cache), "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), *words], env=given, capture_output=True, text=True, check=False
    )


def test_a_full_disk_is_said_and_the_same_command_continues(tmp_path: Path) -> None:
    data, out = class_folders(tmp_path / "data", each=10), tmp_path / "o"
    words = ["choose", MODEL, "--data", f"classes:{data}", "--ways", "probe,prototypes", "--out", str(out)]
    full = run(3000, tmp_path / "cache", *words)  # room for a cell, not for results.json
    assert full.returncode == 1 and "Traceback" not in full.stderr, full.stderr
    assert "File too large" in full.stderr and "results.json" in full.stderr
    assert not (out / "results.json").exists() and not list(out.rglob("*.tmp"))
    cells = {path: path.stat().st_mtime_ns for path in out.glob("cells/**/*.json")}
    assert len(cells) == 3 and all("test" in json.loads(path.read_text()) for path in cells)
    again = run(2**40, tmp_path / "cache", *words)
    assert again.returncode == 0, again.stderr
    assert cells == {path: path.stat().st_mtime_ns for path in out.glob("cells/**/*.json")}
    assert len((out / "test-opened.jsonl").read_text().splitlines()) == 1  # nothing was tested again
    nothing = run(100, tmp_path / "cache2", *words[:-1], str(tmp_path / "p"))
    assert nothing.returncode == 1 and "Traceback" not in nothing.stderr and not list((tmp_path / "p").rglob("*.json"))
