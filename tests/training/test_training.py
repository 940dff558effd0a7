"""The loop, the loader and checkpoints: what one seed fixes, what a stop costs, what stops a run."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diptych.config.recipe import Stage, load_recipe
from diptych.core.errors import DiptychError, Interrupted
from diptych.core.sample import Sample, captioned
from diptych.data.loader import loader_for
from diptych.data.order import mixed
from diptych.data.source import BrokenItem
from diptych.data.text import Tokenizer
from diptych.inference.run import TrainedModel
from diptych.training.checkpoint import checkpoints
from diptych.training.loop import Trainer, train
from diptych.training.optim import Averaged, build_optimizer, clip, rate_share
from diptych.training.validation import Validator

FAST = ["stages.0.batch_size=16", "stages.0.warmup=2", "parts.vision.depth=1", "parts.text.depth=1", "precision=fp32"]


def recipe(budget="96 samples", *extra, name="clip"):
    return load_recipe(name, [*FAST, f"budget={budget}", *extra])


def weights(run):
    return load_file(checkpoints(run / "checkpoints")[-1] / "model.safetensors")


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


class Little:
    """Eleven coloured squares, one of them broken."""

    address, problems = "little:", []

    def __len__(self):
        return 11

    def __getitem__(self, i):
        if i == 4:
            raise BrokenItem("four", "made so")
        return Sample(
            str(i), image=np.full((20, 30, 3), i * 20, dtype=np.uint8), text=captioned([f"number {i}", f"the number {i}"])
        )

    def fingerprint(self):
        return "little"

    def split(self, name):
        return self


def test_one_seed_fixes_a_run_and_another_changes_it(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(recipe("48 samples", f"seed={seed}"), tmp_path / name)
    assert_same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not torch.equal(weights(tmp_path / "a")["parts.space.image.weight"], weights(tmp_path / "c")["parts.space.image.weight"])


@pytest.mark.parametrize("name", ["clip", "maskvlm"])  # maskvlm draws random masks: the random state must be restored too
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, name):
    train(recipe(name=name), tmp_path / "whole")

    class Stopper(Trainer):
        def _update(self, *given):
            if self.step == 3:
                self.stop = "SIGINT"
            return super()._update(*given)

    with pytest.raises(Interrupted, match="--resume"):
        Stopper(recipe(name=name), tmp_path / "halves").run()
    assert len(checkpoints(tmp_path / "halves" / "checkpoints")) == 1
    with pytest.raises(DiptychError, match="--resume"):
        train(recipe(name=name), tmp_path / "halves")
    run = train(recipe(name=name), tmp_path / "halves", resume=True)
    assert run.spent["samples"] == 96 and run.spent["finished"]
    for file in ("model", "ema", "objectives", "optimizer"):
        last = [checkpoints(tmp_path / d / "checkpoints")[-1] / f"{file}.safetensors" for d in ("whole", "halves")]
        assert_same(*map(load_file, last))


def test_a_checkpoint_that_does_not_fit_is_refused_by_name(tmp_path):
    train(recipe("16 samples"), tmp_path / "run")
    for change, words in (("parts.text.depth=2", "missing"), ("parts.text.width=64", "size mismatch")):
        with pytest.raises(DiptychError, match=rf"(?s)step-\d+ does not fit its recipe.*{words}"):
            train(recipe("32 samples", change), tmp_path / "run", resume=True)


def test_stages_train_what_they_name(tmp_path):
    stages = [
        {"name": "align", "train": ["text"], "objectives": {"info_nce": 1}, "batch_size": 16, "share": 1},
        {"name": "tune", "objectives": {"sigmoid": 1}, "batch_size": 16, "share": 2},
    ]
    seen = []
    train(
        load_recipe("clip", {"stages": stages, "budget": "96 samples", "precision": "fp32"}), tmp_path / "run", progress=seen.append
    )
    steps = {row["step"]: row["stage"] for row in seen}
    assert steps == {1: "align", 3: "tune"}, "two of six steps, then four; the first of each stage is logged"


def test_a_stage_that_finds_no_budget_is_said_to_have_not_run(tmp_path, capsys):
    """One step of the first stage costs more than its share and that of the second together."""
    stages = [
        {"name": "align", "train": ["text"], "objectives": {"info_nce": 1}, "batch_size": 24, "share": 1},
        {"name": "tune", "objectives": {"info_nce": 1}, "batch_size": 8, "share": 1},
        {"name": "last", "objectives": {"info_nce": 1}, "batch_size": 8, "share": 2},
    ]

    def run(samples, resume=False):
        train(
            load_recipe("clip", {"stages": stages, "budget": f"{samples} samples", "precision": "fp32"}),
            tmp_path / "run",
            resume=resume,
        )
        return [line.split("'")[1] for line in capsys.readouterr().err.splitlines() if "did not run" in line]

    assert run(32) == ["tune"], "24 of 32 samples are three quarters; the last stage has a quarter"
    assert run(32, resume=True) == [], "finished: nothing new to say"


@pytest.mark.parametrize(
    ("budget", "noted"), [("8 samples", "3 times"), ("1e3 flops", "times"), ("45 samples", ""), ("2 steps", "")]
)
def test_a_budget_below_a_step_is_said_to_be_exceeded(budget, noted, tmp_path, capsys):
    """A step is not divided; the note says by how much, and which setting changes it in all stages."""
    recipe = load_recipe("clip", {"stages.*.batch_size": 24, "budget": budget, "precision": "fp32"})
    run = train(recipe, tmp_path / "run")
    lines = [line for line in capsys.readouterr().err.splitlines() if "the budget" in line]
    assert bool(lines) == bool(noted) and all(noted in line and "stages.*.batch_size=" in line for line in lines)
    if budget == "8 samples":
        assert run.spent["samples"] == 24 and "stages.*.batch_size=8'" in lines[0]
    train(recipe, tmp_path / "run", resume=True)
    assert "the budget" not in capsys.readouterr().err, "finished: nothing new to say"


def test_frozen_stage_leaves_the_weights_alone(tmp_path):
    stage = {"name": "align", "train": ["text"], "objectives": {"info_nce": 1}, "batch_size": 16}
    fresh = Trainer(load_recipe("clip", {"stages": [stage], "budget": "16 samples"}), tmp_path / "fresh").setup.model.state_dict()
    train(load_recipe("clip", {"stages": [stage], "budget": "48 samples"}), tmp_path / "run")
    after = weights(tmp_path / "run")
    assert all(torch.equal(fresh[n], after[n]) for n in fresh if n.startswith("parts.vision"))
    assert not any(torch.equal(fresh[n], after[n]) for n in fresh if n.startswith("parts.text") and n.endswith("weight"))


@pytest.mark.parametrize(
    ("budget", "unit", "amount"),
    [("64 samples", "samples", 64), ("2e9 flops", "flops", 2e9), ("2k tokens", "tokens", 2000), ("3 steps", "steps", 3)],
)
def test_budgets_end_a_run(tmp_path, budget, unit, amount):
    spent = train(recipe(budget), tmp_path / "run").spent
    per_step = spent[unit] / spent["steps"]
    assert amount <= spent[unit] < amount + per_step + 1
    assert spent["parameters"] > 100_000 and spent["peak_memory_bytes"] > 1e6


def test_a_second_is_a_second(tmp_path):
    began = time.monotonic()
    spent = train(recipe("2s"), tmp_path / "run").spent
    assert 2.0 <= spent["seconds"] < 2.0 + time.monotonic() - began


def test_flops_are_those_of_the_matrices():
    from diptych.training.flops import FlopMeter

    meter, a, b = FlopMeter(), torch.randn(8, 16, requires_grad=True), torch.randn(16, 4, requires_grad=True)
    for _ in range(2):
        _, flops = meter.count(("matmul",), lambda: (a @ b).sum().backward())
        assert flops == 3 * 2 * 8 * 16 * 4, "forward, and backward to both factors"


def test_a_loss_that_is_not_finite_stops_before_the_step(tmp_path):
    trainer = Trainer(recipe(), tmp_path / "run")
    with torch.no_grad():
        trainer.setup.model.part("space").image.weight.fill_(math.nan)
    before = {k: v.clone() for k, v in trainer.setup.model.state_dict().items()}
    with pytest.raises(DiptychError, match=r"not finite.*nothing was updated.*lr"):
        trainer.run()
    for name, value in trainer.setup.model.state_dict().items():
        torch.testing.assert_close(value, before[name], equal_nan=True, rtol=0, atol=0)


def test_sigterm_saves_and_says_how_to_go_on(tmp_path):
    out = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "diptych.cli",
        "train",
        "clip",
        "--budget",
        "10m",
        "--out",
        str(out),
        "--set",
        "stages.0.batch_size=16",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 90
    while not (out / "metrics.jsonl").is_file() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, words = process.communicate(timeout=60)
    assert process.returncode == 130, words
    assert "--resume" in words and "saved" in words
    assert checkpoints(out / "checkpoints")


def test_a_run_explains_itself(tmp_path):
    out = tmp_path / "run"
    train(recipe("32 samples"), out)
    environment = json.loads((out / "environment.json").read_text())
    assert environment["packages"]["torch"] and environment["data_fingerprint"]
    assert load_recipe(str(out)) == recipe("32 samples")
    assert list((out / "tensorboard").iterdir())
    assert not list(out.rglob("*.tmp")) and not list(out.rglob("*.pt"))


def test_a_trained_run_loads_with_averaged_weights(tmp_path):
    train(recipe("96 samples"), tmp_path / "run")
    images = [np.full((48, 48, 3), v, dtype=np.uint8) for v in (0, 128, 255)]
    averaged, last = (TrainedModel.load(tmp_path / "run", averaged=a).embed_image(images) for a in (True, False))
    assert averaged.shape == (3, 128) and np.allclose(np.linalg.norm(averaged, axis=1), 1, atol=1e-5)
    assert not np.allclose(averaged, last)


def test_the_loader_gives_the_same_batch_for_the_same_step():
    tokenizer = Tokenizer.train([f"the number {i}" for i in range(11)], 400, 12)
    loaders = [loader_for(Little(), tokenizer, 16, 4, seed=s) for s in (0, 0, 1)]
    assert loaders[0].batch(5)["text"].strings == loaders[1].batch(5)["text"].strings
    assert loaders[0].batch(5)["text"].strings != loaders[2].batch(5)["text"].strings
    loaders[1].batch(0)
    assert loaders[1].batch(5)["text"].strings == loaders[0].batch(5)["text"].strings, "whatever was read before"
    order = [loaders[0].index(p) for p in range(22)]
    assert sorted(order[:11]) == list(range(11)) and sorted(order[11:]) == list(range(11)) and order[:11] != order[11:]


def test_a_broken_item_is_recorded_and_replaced():
    tokenizer = Tokenizer.train([f"the number {i}" for i in range(11)], 400, 12)
    loader = loader_for(Little(), tokenizer, 16, 11)
    batch = loader.batch(0)
    assert batch["image"].pixels.shape == (11, 3, 16, 16) and batch.size == 11
    assert [p.reason for p in loader.problems.values()] == ["made so"]
    assert batch["text"].meaning.unique().numel() >= 10


def test_an_image_that_is_kept_is_not_decoded_again():
    reads = []

    class Counting(Little):
        def __getitem__(self, i):
            reads.append(i)
            return super().__getitem__(i)

    tokenizer = Tokenizer.train([f"the number {i}" for i in range(11)], 400, 12)
    loader = loader_for(Counting(), tokenizer, 16, 11)
    first = loader.batch(0)
    assert set(reads) == set(range(11))
    reads.clear()
    again = loader.batch(0)
    assert reads == [4], "only the broken one is tried again"
    assert torch.equal(first["image"].pixels, again["image"].pixels) and first["text"].strings == again["text"].strings
    assert not torch.equal(*(loader_for(Little(), tokenizer, 16, 11, augment="crop").batch(s)["image"].pixels for s in (0, 1)))


def test_mixed_numbers_do_not_repeat():
    assert len({mixed(seed, i) for seed in range(100) for i in range(100)}) == 10_000


def test_the_schedules():
    wsd = Stage(objectives={"info_nce": 1}, warmup=10, schedule="wsd", decay=0.2)
    assert rate_share(wsd, 0, 0.0) == 0.1 and rate_share(wsd, 50, 0.5) == 1.0
    assert rate_share(wsd, 90, 0.9) == pytest.approx(0.5) and rate_share(wsd, 99, 1.0) == 0
    cosine = wsd.model_copy(update={"schedule": "cosine"})
    assert rate_share(cosine, 50, 0.5) == pytest.approx(0.5)


def test_weight_decay_is_for_matrices_only_and_muon_for_matrices_in_blocks():
    net = torch.nn.ModuleDict({"head": torch.nn.Linear(3, 3), "blocks": torch.nn.ModuleList([torch.nn.Linear(4, 4)])})
    optimizers = build_optimizer([net], Stage(objectives={"info_nce": 1}, optimizer="muon", lr=1e-3, muon_lr=5e-3))
    adam, muon = optimizers.members
    assert [[p.shape for p in g["params"]] for g in adam.param_groups] == [[(3, 3)], [(3,), (4,)]]
    assert [g["weight_decay"] for g in adam.param_groups] == [0.05, 0.0]
    assert [p.shape for p in muon.param_groups[0]["params"]] == [(4, 4)]
    optimizers.set_rate(0.5)
    assert adam.param_groups[0]["lr"] == 5e-4 and muon.param_groups[0]["lr"] == 2.5e-3
    assert len(build_optimizer([net], Stage(objectives={"info_nce": 1}, optimizer="adamw")).members) == 1
    with pytest.raises(DiptychError, match="nothing learns"):
        build_optimizer([net.requires_grad_(False)], Stage(objectives={"info_nce": 1}))


def test_gradients_are_scaled_down_to_the_limit_and_never_up():
    for size, expected in ((10.0, 1.0), (0.2, 0.2), (1.0, 1.0)):
        weights = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(4)), torch.nn.Parameter(torch.zeros(2))]
        direction = torch.randn(7)
        direction *= size / direction.norm()
        weights[0].grad, weights[1].grad = direction[:3].clone(), direction[3:].clone()  # the third has no gradient
        assert clip(weights, 1.0).item() == pytest.approx(size, rel=1e-5), "the norm before is returned"
        after = torch.cat([weights[0].grad, weights[1].grad])
        torch.testing.assert_close(after, direction * (expected / size), rtol=1e-4, atol=1e-7)


def test_averages_forget_the_initial_weights_at_first():
    """With a decay of 0.999 and no warm-up, 99 % of the average of ten steps would be the initial weights."""
    net = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(0.0)
    averaged = Averaged(net, 0.999)
    with torch.no_grad():
        net.weight.fill_(1.0)
    left = 1.0
    for step in range(10):
        averaged.update(step)
        left *= (1 + step) / (10 + step)
        assert averaged.state()["weight"].item() == pytest.approx(1 - left, abs=1e-6)
    assert averaged.state()["weight"].item() > 0.99


def test_averaged_weights_follow():
    net = torch.nn.Linear(2, 2)
    averaged = Averaged(net, 0.9)
    with torch.no_grad():
        net.weight.fill_(1.0)
    for step in range(200):
        averaged.update(step)
    torch.testing.assert_close(averaged.state()["weight"], net.weight, atol=1e-3, rtol=0)


def test_adamw_has_the_betas_of_the_stage():
    net = torch.nn.ModuleDict({"head": torch.nn.Linear(3, 3), "blocks": torch.nn.ModuleList([torch.nn.Linear(4, 4)])})
    for optimizer in ("adamw", "muon"):
        stage = Stage(objectives={"info_nce": 1}, optimizer=optimizer, betas=(0.8, 0.97))
        assert {g["betas"] for g in build_optimizer([net], stage).members[0].param_groups} == {(0.8, 0.97)}


def test_each_stage_has_a_warm_up_a_schedule_and_averages_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("diptych.training.loop.LOG_EVERY", 1)
    steps, update, seen = [], Averaged.update, []
    monkeypatch.setattr(Averaged, "update", lambda self, step: (steps.append(step), update(self, step))[1])
    common = {"objectives": {"info_nce": 1}, "batch_size": 8, "warmup": 3, "schedule": "cosine", "lr": 0.01, "ema": 0.9}
    stages = [{"name": "first", "share": 1, **common}, {"name": "second", "share": 2, **common}]
    tiny = {"parts.vision.depth": 1, "parts.text.depth": 1, "precision": "fp32"}
    train(load_recipe("clip", {"stages": stages, "budget": "48 samples", **tiny}), tmp_path / "run", progress=seen.append)
    assert steps == [1, 2, 1, 2, 3, 4]
    expected = [
        0.01 * min(1, (k + 1) / 3) * 0.5 * (1 + math.cos(math.pi * k / n)) for n in (2, 4) for k in range(n)
    ]  # half a cosine over the n steps of each stage, and three steps of warm-up
    assert [row["lr"] for row in seen] == pytest.approx(expected)


def test_the_loss_on_held_out_samples_is_that_of_evaluation_mode(tmp_path):
    trainer = Trainer(recipe("32 samples", "parts.vision.dropout=0.5", "validation={steps: 2, samples: 24}"), tmp_path / "run")
    setup, stage = trainer.setup, trainer.recipe.stages[0]
    validator = Validator(trainer.recipe, setup, trainer.cluster, stage)
    setup.model.train()
    state = torch.get_rng_state()
    found = validator.loss(stage, setup.objectives, None)
    assert setup.model.training and torch.equal(torch.get_rng_state(), state), "training goes on as if nothing had been"
    with torch.no_grad():
        objective = setup.objectives["info_nce"]
        losses = [objective(setup.model.eval().encode(validator.loader.batch(k))).item() for k in range(validator.batches)]
    assert found == pytest.approx(np.mean(losses), rel=1e-6)
