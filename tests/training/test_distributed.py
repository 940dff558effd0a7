"""Two processes against one: the same losses and weights, whoever holds what; checkpoints that one process can read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from diptych.config.recipe import load_recipe
from diptych.core.errors import DiptychError
from diptych.core.files import read_jsonl
from diptych.inference.run import TrainedModel
from diptych.training.checkpoint import checkpoints
from diptych.training.distributed import Cluster
from diptych.training.loop import Trainer, train
from engine_fixture import TINY, tiny
from launch_fixture import launch

STEPS = [
    *(f"stages.0.{key}" for key in ("batch_size=16", "warmup=2", "optimizer=adamw", "lr=3e-4")),
    *("budget=320 samples", "data.image_size=48"),
]
RECIPES = {
    "clip": ["clip", []],
    "siglip": ["siglip", []],
    "ring": ["siglip", ["stages.0.objectives.sigmoid.exchange=ring"]],
    "filip": ["filip", []],
    "negclip": ["negclip", ["stages.0.micro_batch=4", "data.neighbours={by: 'engine_fixture:colours', first: 64}"]],
    "coca": ["coca", ["stages.0.micro_batch=4"]],
    "momentum": [
        "blip",
        [
            "stages.0.objectives={info_nce: {momentum: ema, soft: 0.4, ramp: 160, queue: 40}, next_token: 1}",
            "stages.0.micro_batch=4",
        ],
    ],
    # In every second step some parameters have no gradient; a decay of weights without one would show.
    "round-robin": ["coca", ["stages.0.round_robin=[[info_nce], [next_token]]", "stages.0.weight_decay=2"]],
    "sharded": ["clip", ["sharding=fsdp", "stages.0.micro_batch=4"]],
    "sharded-muon": ["clip", ["sharding=fsdp", "stages.0.optimizer=muon", "stages.0.muon_lr=1e-3"]],
}


LM = ["parts.lm={kind: random, frozen: true}", "parts.vision={kind: vit, depth: 1, width: 32, heads: 2, frozen: true}"]
RECIPES |= {  # providers other than ``forward``
    "sharded-llip": ["llip", ["sharding=fsdp"]],
    "sharded-sparc": ["sparc", ["sharding=fsdp"]],
    "sharded-llava": ["llava-joint", ["sharding=fsdp", *LM]],
    "llava": ["llava-joint", [*LM, "stages.0.micro_batch=4"]],
    "flamingo": ["flamingo", [*LM, "parts.fusion.every=1", "parts.fusion.hidden=32"]],
}
QUICK = ("clip", "ring", "filip", "sharded")


def train_in_two(keys, out):
    launch([[RECIPES[key][0], str(out / key), [*STEPS, *RECIPES[key][1]]] for key in keys])
    return out


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The quick recipes trained by two processes, in one pair of processes."""
    return train_in_two(QUICK, tmp_path_factory.mktemp("two"))


def last(run):
    return checkpoints(run / "checkpoints")[-1]


@pytest.mark.parametrize("key", QUICK)
def test_two_processes_do_what_one_does(two, tmp_path, key):
    compare_with_one(two, tmp_path, key)


def test_a_parameter_without_a_gradient_anywhere_keeps_none(monkeypatch):
    """Three parameters: with a gradient in both processes, in the other one alone, in none."""
    both, other, none = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    both.grad = torch.tensor([1.0, 2.0])
    theirs = [torch.tensor([1, 1, 0], dtype=torch.uint8), torch.tensor([5.0, 6.0, 7.0, 8.0])]

    def all_reduce(x, how=torch.distributed.ReduceOp.SUM, group=None):
        """With what the other process has."""
        received = theirs.pop(0)
        assert x.shape == received.shape and (how == torch.distributed.ReduceOp.MAX) == (x.dtype == torch.uint8)
        x.copy_(torch.maximum(x, received) if x.dtype == torch.uint8 else x + received)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    Cluster(0, 2).average_gradients([both, other, none])
    assert both.grad.tolist() == [3, 4] and other.grad.tolist() == [3.5, 4] and none.grad is None


def test_a_process_without_terms_does_not_keep_the_others_waiting(tmp_path):
    masked = [
        *STEPS,
        "stages.0.batch_size=8",
        "budget=16 samples",
    ]  # one sample in eight is reconstructed, and the second process has none
    launch([["maskvlm", str(tmp_path / "two"), masked]])
    rows = read_jsonl(tmp_path / "two" / "metrics.jsonl")
    assert all(0 < row["losses"]["masked_patches"] < 10 for row in rows) and rows[-1]["samples"] > 0


def test_hard_negatives_that_one_process_alone_has_do_not_keep_the_others_waiting(tmp_path):
    """Few captions have two words to swap, so that most batches have negatives in one process or in none."""
    (tmp_path / "photos").mkdir()
    for i in range(64):
        image = np.random.default_rng(i).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / "photos" / f"{i:02d}.png")
        (tmp_path / "photos" / f"{i:02d}.txt").write_text("a red cube on a blue ball" if i % 16 == 0 else f"number{i}")
    settings = [*STEPS, "stages.0.batch_size=8", "budget=80 samples", f"data.train=folder:{tmp_path / 'photos'}"]
    launch([["negclip@tuned", str(tmp_path / "two"), settings]])
    train(load_recipe("negclip@tuned", [*TINY, *settings]), tmp_path / "one")
    ours, alone = (read_jsonl(tmp_path / d / "metrics.jsonl") for d in ("two", "one"))
    assert ours[-1]["samples"] == alone[-1]["samples"] == 80
    assert ours[-1]["loss"] == pytest.approx(alone[-1]["loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("key", [key for key in RECIPES if key not in QUICK])
def test_two_processes_do_what_one_does_too(tmp_path, key):
    compare_with_one(train_in_two([key], tmp_path), tmp_path, key)


def compare_with_one(two, tmp_path, key):
    name, overrides = RECIPES[key]
    overrides = [o for o in overrides if not o.startswith("sharding")]
    train(load_recipe(name, [*tiny(name), *STEPS, *overrides]), tmp_path / "one")
    ours, alone = (read_jsonl(d / "metrics.jsonl") for d in (two / key, tmp_path / "one"))
    pairs = [(a, b) for a in ours for b in alone if a["step"] == b["step"]]  # slow steps are logged more often
    assert {1, 10, 20} <= {a["step"] for a, _ in pairs}
    for a, b in pairs:
        # Orthogonalised steps magnify the last digit.
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4 if "muon" in key else 1e-5), a["step"]
        assert a["samples"] == b["samples"]
        assert 0.9 < a["flops"] / b["flops"] < 1.6  # what is compared twice is counted twice
    for file in ("model", "ema", "objectives"):
        mine, theirs = (load_file(last(d) / f"{file}.safetensors") for d in (two / key, tmp_path / "one"))
        assert mine.keys() == theirs.keys()
        for n in mine:
            a, b = mine[n].double(), theirs[n].double()  # a queue has whole numbers, too
            assert (a - b).norm() <= 2e-3 * b.norm() + 1e-3, n


def test_one_process_loads_what_a_sharded_run_saved_and_goes_on_with_it(two):
    model = TrainedModel.load(two / "sharded")
    assert model.embed_text(["a red fox"]).shape == (1, 128)
    recipe = load_recipe(str(two / "sharded" / "recipe.yaml"), ["budget=352 samples", "sharding=none"])
    run = train(recipe, two / "sharded", resume=True)
    assert run.spent["samples"] == 352 and run.spent["processes"] == 1


@pytest.mark.slow
def test_a_sharded_run_goes_on_from_what_one_process_saved(tmp_path):
    constant = [*STEPS, "stages.0.schedule=constant"]
    train(load_recipe("clip", [*TINY, *constant, "budget=160 samples"]), tmp_path / "run")
    assert read_jsonl(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 10
    launch([["clip", str(tmp_path / "run"), [*constant, "sharding=fsdp"], True]])
    train(load_recipe("clip", [*TINY, *constant]), tmp_path / "whole")
    a, b = (read_jsonl(tmp_path / d / "metrics.jsonl")[-1] for d in ("run", "whole"))
    assert a["step"] == b["step"] == 20 and a["loss"] == pytest.approx(b["loss"], rel=1e-5)


def test_sharding_needs_company(tmp_path):
    with pytest.raises(DiptychError, match="needs several processes"):
        train(load_recipe("clip", [*TINY, "sharding=fsdp", *STEPS]), tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "overrides", "who"),
    [
        ("coca", [], "MultimodalDecoder"),
        ("maskvlm", [], "MaskedWords"),
        ("flava", ["parts.quantizer.width=32", "parts.quantizer.vocabulary=40"], "Masked(Codes|Text)"),
        ("flamingo", [*LM, "parts.fusion.every=1"], "GatedCrossAttention"),
    ],
)
def test_sharding_what_computes_with_anothers_weights_is_refused(tmp_path, name, overrides, who):
    recipe = load_recipe(name, [*tiny(name), *overrides, "sharding=fsdp"])
    with pytest.raises(DiptychError, match=rf"fsdp cannot shard .* {who} computes .*remove `sharding`"):
        Trainer(recipe, tmp_path / "run")


def test_a_cluster_of_one_changes_nothing():
    cluster, x = Cluster(), torch.arange(3.0)
    assert cluster.gather(x) is x and cluster.total(1.5, 2.0) == [1.5, 2.0] and cluster.agree("a") == "a" and cluster.first
