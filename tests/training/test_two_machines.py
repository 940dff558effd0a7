"""Two machines' worth of processes, each started by its own torchrun, on the loopback interface."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from safetensors.torch import load_file

from diptych.core.files import read_json, read_jsonl
from diptych.training.checkpoint import checkpoints
from engine_fixture import TINY

COMMON = [*TINY, "stages.0.batch_size=16", "stages.0.warmup=2", "stages.0.optimizer=adamw", "stages.0.lr=3e-4", "budget=192 samples",
          "data.image_size=48", "trackers=[]"]  # fmt: skip


def words(out):
    return ["-m", "diptych.cli", "train", "clip", "--out", str(out), *(x for o in COMMON for x in ("--set", o))]


@pytest.mark.slow
def test_two_launchers_train_one_model(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    machines = [
        subprocess.Popen(
            [*(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={i}", "--nproc-per-node=1"),
             *("--master-addr=127.0.0.1", f"--master-port={port}"), *words(tmp_path / "two")],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    try:
        outputs = [machine.communicate(timeout=500)[0] for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    assert [machine.returncode for machine in machines] == [0, 0], "\n".join(outputs)
    subprocess.run([sys.executable, *words(tmp_path / "one")], env=environment, check=True, capture_output=True, timeout=500)
    one, two = (read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert read_json(tmp_path / "two" / "spent.json")["processes"] == 2
    np.testing.assert_allclose([row["loss"] for row in two], [row["loss"] for row in one], rtol=1e-5)
    a, b = (load_file(checkpoints(tmp_path / name / "checkpoints")[-1] / "model.safetensors") for name in ("one", "two"))
    for name, weight in a.items():
        np.testing.assert_allclose(b[name], weight, atol=1e-4, err_msg=name)  # AdamW makes more of a rounding
