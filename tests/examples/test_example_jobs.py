"""The scripts of examples/jobs run as they stand, with small budgets."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import diptych

JOBS = Path(__file__).parents[2] / "examples" / "jobs"
SMALL = {
    "choose_for_500_pictures.py": (["--shots", "2", "--ways", "zeroshot", "gda"], r"gda"),
    "adapt_to_captions.py": (["--n", "20"], r"elsewhere, after: R@1 0\.\d+"),
    "judge_an_endpoint.py": (["--tasks", "pope?n=6"], r"yes_ratio: 1\.000"),
    "clean_a_pool.py": (["--limit", "60"], r"kept[\s\S]*train on it: diptych train clip"),
    "search_your_pictures.py": (["--limit", "40"], r"40 pictures, 40 of them new[\s\S]*diptych serve"),
    "llava_in_miniature.py": (
        ["--budget", "32 samples", "--set", "backbones.vision.budget=64 samples", "backbones.lm.budget=64 samples"],
        r"is there a fish\?",
    ),
    "order_in_a_clip.py": (["--budget", "64 samples", "--n", "3"], r"test-of-time order: [\d.]+ \["),
    "a_loss_of_your_own.py": (["--budget", "64 samples", "--set", "stages.0.batch_size=16"], r"with-contrast: R@1 of 50"),
}


def test_every_script_is_short_named_and_tested() -> None:
    scripts = {path.name: path.read_text(encoding="utf-8") for path in JOBS.glob("*.py")}
    assert set(scripts) == set(SMALL) and len(scripts) == 8
    assert all(len(text.splitlines()) <= 60 for text in scripts.values())
    page = (JOBS / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(\w+\.py)`", page)) == set(scripts)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_it_runs(name: str, tmp_path: Path) -> None:
    words, expected = SMALL[name]
    environment = {**os.environ, "PYTHONPATH": str(Path(diptych.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(JOBS / name), *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert re.search(expected, done.stdout), done.stdout
