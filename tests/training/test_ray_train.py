"""Ray Train as the launcher: the numbers of torchrun, and a worker that dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from diptych.config.recipe import load_recipe
from diptych.core.errors import DiptychError
from diptych.core.files import read_jsonl
from diptych.training.checkpoint import checkpoints
from diptych.training.ray_train import Follower, train_by_ray
from engine_fixture import TINY
from launch_fixture import launch

STEPS = [
    *(f"stages.0.{key}" for key in ("batch_size=16", "warmup=2", "optimizer=adamw", "lr=3e-4")),
    *("budget=320 samples", "data.image_size=48"),
]


def weights(run):
    return load_file(checkpoints(run / "checkpoints")[-1] / "model.safetensors")


def train_in(out, *more):
    """``diptych train`` by Ray in a process of its own."""
    words = [x for o in [*TINY, *STEPS, *more] for x in ("--set", o)]
    command = [
        sys.executable,
        "-m",
        "diptych.cli",
        "train",
        "clip",
        "--runner",
        "ray",
        "--processes",
        "2",
        "--out",
        str(out),
        *words,
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def workers():
    """The processes that Ray calls its train workers."""
    found = []
    for name in os.listdir("/proc"):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                if name.isdigit() and b"RayTrainWorker" in file.read():
                    found.append(int(name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_ray_gives_the_numbers_of_torchrun_and_survives_a_dead_worker(tmp_path):
    pytest.importorskip("ray")
    launch([["clip", str(tmp_path / "torchrun"), STEPS]])
    killed = train_in(tmp_path / "ray", "checkpoints.steps=5", "budget=1600 samples")
    try:
        until = time.monotonic() + 300
        while not checkpoints(tmp_path / "ray" / "checkpoints"):
            assert killed.poll() is None and time.monotonic() < until, killed.communicate()[0]
            time.sleep(0.05)
        os.kill(workers()[0], signal.SIGKILL)
        output, _ = killed.communicate(timeout=400)
    finally:
        killed.kill()
    assert killed.returncode == 0, output
    steps = [row["step"] for row in read_jsonl(tmp_path / "ray" / "metrics.jsonl")]
    assert steps == sorted(set(steps)) and steps[-1] == 100, "each step is in the record once"
    plain = train_in(tmp_path / "whole", "checkpoints.steps=5", "budget=1600 samples")
    output, _ = plain.communicate(timeout=400)
    assert plain.returncode == 0, output
    whole, again = weights(tmp_path / "whole"), weights(tmp_path / "ray")
    assert all(torch.equal(whole[n], again[n]) for n in whole), "as if no worker had died"
    first = [row["loss"] for row in read_jsonl(tmp_path / "torchrun" / "metrics.jsonl")]
    by_ray = {row["step"]: row["loss"] for row in read_jsonl(tmp_path / "whole" / "metrics.jsonl")}
    assert first[0] == by_ray[1], "the first step does not depend on the budget"


def test_lines_are_passed_on_once_and_whole(tmp_path):
    path, seen = tmp_path / "metrics.jsonl", []
    path.write_text(json.dumps({"step": 1}) + "\n")
    follower = Follower(path, seen.append)
    with path.open("a") as file:
        file.write(json.dumps({"step": 2}) + "\n" + '{"step"')
        file.flush()
        follower.read()
        assert seen == [{"step": 2}], "not what was there before, and not half a line"
        file.write(": 3}\n")
    path.write_text(json.dumps({"step": 1}) + "\n")  # cut to a checkpoint
    follower.read()
    with path.open("a") as file:
        file.write(json.dumps({"step": 4}) + "\n")
    follower.stop()
    assert seen == [{"step": 2}, {"step": 4}]


def test_a_run_is_not_written_over(tmp_path):
    pytest.importorskip("ray")
    place = tmp_path / "run" / "checkpoints" / "step-00000001"
    place.mkdir(parents=True)
    (place / "state.json").touch()
    assert checkpoints(tmp_path / "run" / "checkpoints")
    with pytest.raises(DiptychError, match="holds a run already; continue with --resume"):
        train_by_ray(load_recipe("clip"), tmp_path / "run", 2)
