"""What a run survives: kills, full disks, vanished data, checkpoints that cannot be read; and what it keeps."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diptych.api import load
from diptych.config.recipe import Stage, load_recipe
from diptych.core import extras
from diptych.core.errors import DiptychError
from diptych.core.files import read_json, read_jsonl
from diptych.core.sample import Sample, captioned
from diptych.data.source import BrokenItem
from diptych.training.checkpoint import best_checkpoint, checkpoints, newest
from diptych.training.loop import Trainer, train
from diptych.training.optim import build_optimizer, layers_above
from diptych.training.trackers import flat, start_trackers
from engine_fixture import TINY

FAST = [*TINY, "stages.0.batch_size=16", "stages.0.warmup=2", "data.image_size=48"]


def recipe(*overrides, name="clip"):
    return load_recipe(name, [*FAST, *overrides])


def run_of(out, *overrides):
    """A run in a process of its own."""
    code = (
        "import json, sys; from pathlib import Path; from diptych.config.recipe import load_recipe; from diptych.training.loop "
        "import train;"
        "train(load_recipe('clip', json.loads(sys.argv[2])), Path(sys.argv[1]), resume=True)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", code, str(out), json.dumps([*FAST, *overrides])], env=environment, stderr=subprocess.PIPE
    )


def same_checkpoint(a, b):
    for file in ("model", "ema", "objectives", "optimizer"):
        mine, theirs = (load_file(checkpoints(d / "checkpoints")[-1] / f"{file}.safetensors") for d in (a, b))
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine), file


def killed_and_resumed(out, kills, asked, seed=0):
    """Start, kill -9 at a random moment, start again …; then let it end. How many kills met a run under way."""
    rng = random.Random(seed)
    met = 0
    for _ in range(kills):
        process = run_of(out, *asked)
        done_before = len(read_jsonl(out / "metrics.jsonl"))
        deadline = time.monotonic() + 120
        while process.poll() is None and len(read_jsonl(out / "metrics.jsonl")) <= done_before and time.monotonic() < deadline:
            time.sleep(0.02)  # set-up is long and holds no news; the kill shall fall into training
        time.sleep(rng.uniform(0, 0.4))
        met += process.poll() is None
        process.kill()
        process.communicate()
    last = run_of(out, *asked)
    assert last.wait() == 0, last.communicate()[1]
    return met


KILLS = ["budget=1600 samples", "checkpoints.steps=7"]


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path):
    train(recipe(*KILLS), tmp_path / "whole")
    assert killed_and_resumed(tmp_path / "killed", 1, KILLS) == 1
    same_checkpoint(tmp_path / "whole", tmp_path / "killed")
    steps = [row["step"] for row in read_jsonl(tmp_path / "killed" / "metrics.jsonl")]
    assert steps == sorted(set(steps)), "no step is logged twice"


@pytest.mark.slow
def test_killed_twenty_times_at_random(tmp_path):
    asked = ["budget=16k samples", "checkpoints.steps=5"]
    train(recipe(*asked), tmp_path / "whole")
    assert killed_and_resumed(tmp_path / "killed", 20, asked) >= 15
    same_checkpoint(tmp_path / "whole", tmp_path / "killed")


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path):
    trainer = Trainer(recipe("budget=64 samples", "checkpoints.steps=2"), tmp_path / "run")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing beyond the limit then fails as a full disk does

    class Filling(type(trainer)):
        def _save(self, learning, best=None):
            if self.step == 4:
                resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
            super()._save(learning, best)

    trainer.__class__ = Filling
    try:
        with pytest.raises(DiptychError, match=r"cannot write the checkpoint .*step-00000004.*earlier checkpoints are intact"):
            trainer.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    (kept,) = checkpoints(tmp_path / "run" / "checkpoints")
    assert kept.name == "step-00000002"
    train(recipe("budget=64 samples", "checkpoints.steps=2"), tmp_path / "run", resume=True)
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
    train(recipe("budget=64 samples", "checkpoints.steps=2"), tmp_path / "whole")
    same_checkpoint(tmp_path / "whole", tmp_path / "run")


class Vanishing:
    """Thirty pictures; after ``until`` readings none can be read."""

    address, problems = "vanishing:", []

    def __init__(self, until):
        self.left = until

    def __len__(self):
        return 30

    def __getitem__(self, i):
        self.left -= 1
        if self.left < 0:
            raise BrokenItem(f"picture {i}", "no such file")
        return Sample(str(i), image=np.full((48, 48, 3), i * 8, dtype=np.uint8), text=captioned([f"number {i}"]))

    def fingerprint(self):
        return "vanishing"

    def split(self, name):
        return self


def test_data_that_vanishes_costs_no_step_that_was_made(tmp_path, monkeypatch):
    monkeypatch.setattr("diptych.data.loader.CACHE_BYTES", 0)
    with pytest.raises(DiptychError, match="no usable sample.*picture .*no such file"):
        train(recipe("budget=320 samples"), tmp_path / "run", source=Vanishing(30 + 100))
    assert read_json(checkpoints(tmp_path / "run" / "checkpoints")[-1] / "state.json")["step"] == 6
    run = train(recipe("budget=320 samples"), tmp_path / "run", source=Vanishing(10_000), resume=True)
    assert run.spent["samples"] == 320


def test_a_checkpoint_that_cannot_be_read_is_passed_over(tmp_path, capsys):
    train(recipe("budget=64 samples", "checkpoints.steps=2"), tmp_path / "run")
    earlier, last = checkpoints(tmp_path / "run" / "checkpoints")
    (last / "model.safetensors").write_bytes((last / "model.safetensors").read_bytes()[:1000])
    found, checkpoint = newest(tmp_path / "run" / "checkpoints")
    assert found == earlier and checkpoint.state["step"] == 2
    assert "trying the previous one" in capsys.readouterr().err
    train(recipe("budget=96 samples", "checkpoints.steps=2"), tmp_path / "run", resume=True)
    for path in checkpoints(tmp_path / "run" / "checkpoints"):
        (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(DiptychError, match="cannot read the checkpoint"):
        newest(tmp_path / "run" / "checkpoints")


def test_what_a_run_writes_is_not_thrown_out_for_a_later_checkpoint_that_cannot_be_read(tmp_path):
    kept = ["checkpoints.steps=2", "checkpoints.keep=2"]
    train(recipe("budget=64 samples", *kept), tmp_path / "run")
    last = checkpoints(tmp_path / "run" / "checkpoints")[-1]
    last = last.rename(last.with_name("step-00000009"))
    (last / "model.safetensors").write_bytes(b"")
    train(recipe("budget=64 samples", "checkpoints.keep=1"), tmp_path / "run", resume=True)
    assert [p.name for p in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-00000004"]


def test_spent_says_how_much_each_source_gave(tmp_path):
    data = "data.train=mix:1*scenes:small+3*scenes:medium"
    train(recipe("budget=800 samples", data, "stages.0.schedule=constant"), tmp_path / "run")
    train(recipe("budget=1600 samples", data, "stages.0.schedule=constant"), tmp_path / "run", resume=True)
    drawn = read_json(tmp_path / "run" / "spent.json")["drawn"]
    small, medium = (next(n for a, n in drawn.items() if f"scenes:{size}" in a) for size in ("small", "medium"))
    assert small + medium == 1600 and abs(small - 400) < 60


def test_the_last_stage_ends_with_the_budget(tmp_path):
    shares = [0.7, 0.2, 0.1]  # each over their sum, added up: 1.0000000000000002
    stages = [{"name": f"s{k}", "objectives": {"info_nce": 1}, "batch_size": 4, "share": x} for k, x in enumerate(shares)]
    run = train(load_recipe("clip", {"stages": stages, "budget": "40 samples", "precision": "fp32"}), tmp_path / "run")
    assert run.spent["samples"] == 40


def test_the_best_by_validation_loss_is_kept(tmp_path, monkeypatch):
    losses = iter([3.0, 1.0, 2.0, 2.5, 4.0])
    monkeypatch.setattr("diptych.training.validation.Validator.loss", lambda *_: next(losses))
    train(recipe("budget=160 samples", "validation.steps=2", "checkpoints.keep=1"), tmp_path / "run")
    root = tmp_path / "run" / "checkpoints"
    assert [p.name for p in checkpoints(root)] == ["step-00000004", "step-00000010"]
    assert best_checkpoint(root).name == "step-00000004"
    rows = read_jsonl(tmp_path / "run" / "validation.jsonl")
    assert [(r["step"], r["best"]) for r in rows] == [(2, True), (4, True), (6, False), (8, False), (10, False)]


def test_any_checkpoint_can_be_loaded_by_its_address(tmp_path):
    run = tmp_path / "run"
    train(recipe("budget=64 samples", "checkpoints.steps=2", "stages.0.ema=0"), run)
    last, first = (load(run / "checkpoints" / name).model.state_dict() for name in ("last", "step-00000002"))
    saved = load_file(run / "checkpoints" / "step-00000002" / "model.safetensors")
    assert all(torch.equal(first[n], saved[n]) for n in saved) and any(not torch.equal(last[n], saved[n]) for n in saved)
    with pytest.raises(DiptychError, match="no checkpoint 'best'; a run keeps its best only with `validation`"):
        load(run / "checkpoints" / "best")
    with pytest.raises(DiptychError, match="did you mean 'step-00000002'"):
        load(run / "checkpoints" / "step-2")


def test_validation_changes_nothing_but_the_record(tmp_path):
    train(recipe("budget=96 samples"), tmp_path / "without")
    train(recipe("budget=96 samples", "validation={steps: 2, samples: 32}"), tmp_path / "with")
    same_checkpoint(tmp_path / "without", tmp_path / "with")
    rows = read_jsonl(tmp_path / "with" / "validation.jsonl")
    assert [r["step"] for r in rows] == [2, 4, 6] and all(0 < r["loss"] < 10 for r in rows)


def test_a_run_goes_on_from_its_mirror(tmp_path):
    mirrored = ["checkpoints.steps=2", f"checkpoints.mirror=file://{tmp_path}/mirror"]
    train(recipe("budget=64 samples", *mirrored), tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "mirror").iterdir()) == ["step-00000002", "step-00000004"]
    (tmp_path / "mirror" / "step-00000009").mkdir()  # a copy that was cut short has no state.json yet
    train(recipe("budget=128 samples", *mirrored), tmp_path / "elsewhere", resume=True)
    train(recipe("budget=64 samples"), tmp_path / "run", resume=True)
    train(recipe("budget=128 samples"), tmp_path / "run", resume=True)
    same_checkpoint(tmp_path / "run", tmp_path / "elsewhere")


def test_a_mirror_that_fails_costs_nothing(tmp_path, capsys):
    (tmp_path / "mirror").write_text("a file where a directory should be")
    train(recipe("budget=32 samples", f"checkpoints.mirror={tmp_path}/mirror"), tmp_path / "run")
    assert "did not take step-00000002" in capsys.readouterr().err
    with pytest.raises(DiptychError, match="cannot open 'nonsense://x'"):
        train(recipe("checkpoints.mirror=nonsense://x"), tmp_path / "other")


def test_learning_rates_fall_towards_the_stem():
    trainer_names = [
        "0.parts.vision.stem.weight",
        "0.parts.vision.transformer.blocks.0.mlp.0.weight",
        "0.parts.vision.transformer.blocks.1.mlp.0.weight",
        "0.parts.vision.transformer.norm.weight",
        "0.parts.text.embedding.weight",
        "0.parts.text.transformer.blocks.0.mlp.0.weight",
        "0.parts.space.image.weight",
        "1.logit_scale",
    ]
    assert list(layers_above(trainer_names).values()) == [3, 2, 1, 0, 2, 1, 0, 0]


def test_a_stage_with_layer_decay_builds_such_groups(tmp_path):
    trainer = Trainer(recipe("parts.vision.depth=2"), tmp_path / "run")
    stage = Stage(objectives={"info_nce": 1}, layer_decay=0.5, optimizer="adamw", lr=1.0)
    optimizer = build_optimizer([trainer.setup.model, trainer.setup.objectives], stage)
    rates = {id(p): g["lr"] for m in optimizer.members for g in m.param_groups for p in g["params"]}
    names = dict(trainer.setup.model.named_parameters())
    assert rates[id(names["parts.vision.transformer.blocks.1.mlp.0.weight"])] == 0.5
    assert rates[id(names["parts.vision.transformer.blocks.0.mlp.0.weight"])] == 0.25
    assert rates[id(names["parts.vision.stem.conv1.weight"])] == 0.125
    assert rates[id(names["parts.space.image.weight"])] == 1.0
    optimizer.set_rate(0.5)
    assert optimizer.members[0].param_groups[0]["lr"] in (0.0625, 0.125, 0.25, 0.5)


def test_trackers_that_are_not_installed_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(extras, "installed", lambda module: False)
    with pytest.raises(DiptychError, match=r"trackers: mlflow is not installed .* pip install 'diptych\[trackers\]' mlflow"):
        start_trackers(["mlflow"], tmp_path, "p", {})
    with pytest.raises(DiptychError, match=r"trackers: tensorboard is not installed .* pip install 'diptych\[trackers\]'$"):
        Trainer(recipe("trackers=[tensorboard]"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert start_trackers(None, tmp_path, "p", {}) == [] and capsys.readouterr().err.count("TensorBoard is not installed") == 1
    assert flat({"a": {"b": [1, {"c": 2}]}, "d": None}) == {"a.b.0": 1, "a.b.1.c": 2, "d": None}


def test_stages_need_names_of_their_own():
    with pytest.raises(DiptychError, match="two stages are called 'main'"):
        load_recipe("clip", {"stages": [{"objectives": {"info_nce": 1}}, {"objectives": {"info_nce": 1}}]})


@pytest.mark.slow
def test_memory_does_not_creep(tmp_path):
    readings = []

    def look(row):
        with open("/proc/self/statm") as statm:
            readings.append(int(statm.read().split()[1]) * resource.getpagesize())

    train(recipe("budget=48k samples"), tmp_path / "run", progress=look)
    third = len(readings) // 3
    assert len(readings) > 200 and max(readings[-third:]) - max(readings[third : 2 * third]) < 8 * 2**20
