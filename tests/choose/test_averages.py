"""Means of runs' weights: WiSE-FT and greedy soups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cli_fixture
from cli_fixture import Cli
from diptych.api import load
from diptych.choose.towers import TOWER_WAYS, fit
from diptych.choose.towers.average import greedy, mean_of, model_of, soup, weights_of
from diptych.choose.towers.fit import chosen_alpha
from diptych.choose.towers.held import held_out, scorer
from diptych.core.errors import DiptychError
from diptych.core.files import read_json
from diptych.data.sources import open_source
from diptych.inference.export import export
from diptych.inference.run import TrainedModel
from diptych.training.checkpoint import checkpoints
from towers_fixture import FAST, NAMES, folders, pictures, run

cli = cli_fixture.cli
QUICK: dict[str, Any] = {"budget": "64 samples", "overrides": FAST}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"classes:{folders(tmp_path_factory.mktemp('data') / 'classes')}"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(run(tmp_path_factory.mktemp("models") / "run"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, base: str, data: str) -> dict[str, Path]:
    """Four runs from the same weights, a quarter of their few pictures held out: two of full, two of LoRA."""
    root = tmp_path_factory.mktemp("runs")
    made = {}
    for seed, way, lr in ((0, "full", 1e-3), (1, "full", 3e-3), (2, "lora", 1e-2), (3, "lora", 3e-3)):
        settings = {"lr": lr, "hold": 0.25}
        made[f"{way}{seed}"] = fit(base, TOWER_WAYS[way], data, root / f"{way}{seed}", shots=8, settings=settings, **QUICK)
    return made


@pytest.mark.parametrize(
    ("alone", "gains", "want"),
    [
        ([0.5, 0.7, 0.6], {(1, 2): 0.7, (1, 2, 0): 0.69}, [1, 2]),  # equal is good enough; worse is not
        ([0.7, 0.7, 0.6], {(0, 1): 0.6, (0, 2): 0.8}, [0, 2]),  # equal ones in the order given; the best is kept on
        ([0.1], {}, [0]),
        ([0.3, 0.2, 0.1], {(0, 1): 0.4, (0, 1, 2): 0.5}, [0, 1, 2]),
    ],
)
def test_a_greedy_soup_adds_what_does_not_make_it_worse(
    alone: list[float], gains: dict[tuple[int, ...], float], want: list[int]
) -> None:
    members, score = greedy(alone, lambda which: gains[tuple(which)])
    assert members == want
    assert score == (gains[tuple(want)] if len(want) > 1 else alone[want[0]]) and score >= max(alone)


def test_the_mean_is_that_of_each_weight_with_adapters_merged(runs: dict[str, Path]) -> None:
    full, lora = runs["full0"], runs["lora2"]
    weights = [weights_of(full), weights_of(lora)]
    assert not weights[1].recipe.adapters and weights[1].recipe.stages[0].train == "all"
    mean = mean_of(weights, [0.25, 0.75])
    assert mean.model.keys() == weights[0].model.keys() == weights[1].model.keys()
    for name, value in mean.model.items():
        want = 0.25 * weights[0].model[name].double().numpy() + 0.75 * weights[1].model[name].double().numpy()
        np.testing.assert_allclose(value.numpy(), want, atol=1e-6)
    unmerged = TrainedModel.load(lora, "cpu")
    assert unmerged.model.adapters
    alone = model_of(weights[1], lora)
    np.testing.assert_allclose(alone.embed_image(pictures()), unmerged.embed_image(pictures()), atol=1e-5)
    np.testing.assert_allclose(alone.embed_text(NAMES), unmerged.embed_text(NAMES), atol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_wise_ft_lies_between_the_model_and_its_fine_tuning(base: str, data: str, tmp_path: Path, alpha: float) -> None:
    settings = {"alpha": alpha, "lr": 3e-3}
    out = fit(base, TOWER_WAYS["wise-ft"], data, tmp_path / "wise", shots=4, settings=settings, **QUICK)
    made: Any = load(out, device="cpu")
    assert made.classes == tuple(sorted(NAMES)) and read_json(out / "environment.json")["average"]["alpha"] == alpha
    states = [
        {k: v.double() for k, v in TrainedModel.load(place, "cpu").model.state_dict().items()}
        for place in (Path(base), out / "fine-tuned", out)
    ]
    for name, before in states[0].items():
        want = (1 - alpha) * before + alpha * states[1][name]
        torch.testing.assert_close(states[2][name], want, atol=1e-6, rtol=0)
    assert max(float((states[0][n] - states[1][n]).abs().max()) for n in states[0]) > 1e-3
    model = TrainedModel.load(out, "cpu")
    from transformers import AutoModel

    theirs = AutoModel.from_pretrained(export(out, out=tmp_path / "export").path)
    assert theirs.logit_scale.exp().item() == pytest.approx(model.scale, rel=1e-5)


def test_the_share_is_chosen_on_held_out_training_pictures(base: str, data: str, tmp_path: Path) -> None:
    settings = {"alpha": "held-out", "lr": 3e-3}
    out = fit(base, TOWER_WAYS["wise-ft"], data, tmp_path / "wise", shots=8, settings=settings, **QUICK)
    note = read_json(out / "environment.json")["average"]
    assert len(note["tried"]) == 11 and note["alpha"] in [row["alpha"] for row in note["tried"]]
    best = max(round(row["accuracy"], 9) for row in note["tried"])
    least = min(row["loss"] for row in note["tried"] if round(row["accuracy"], 9) == best)
    assert next(row for row in note["tried"] if row["alpha"] == note["alpha"])["loss"] == least
    train = open_source(TrainedModel.load(out, "cpu").recipe.data.train)
    learned = {train.split("train")[i].id for i in range(len(train.split("train")))}
    held = {train.split("validation")[i].id for i in range(len(train.split("validation")))}
    test = {train.split("test")[i].id for i in range(len(train.split("test")))}
    assert len(held) == 8 and len(learned) == 24 and not held & learned and not (held | learned) & test
    few = fit(base, TOWER_WAYS["wise-ft"], data, tmp_path / "one", shots=1, settings=settings, **QUICK)
    assert read_json(few / "environment.json")["average"]["alpha"] == 0.5  # nothing can be held out
    before, after = weights_of(Path(base)), weights_of(out / "fine-tuned")
    alpha, tried = chosen_alpha(before, after, out / "fine-tuned", train.split("validation"), [1.0, 0.0])
    assert [row["alpha"] for row in tried] == [1.0, 0.0] and alpha in (0.0, 1.0)


def test_a_soup_from_the_command_line_is_a_run(cli: Cli, runs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "soup"
    done = cli("soup", *runs.values(), "--out", out)
    assert done.code == 0, done.err
    assert f"{out}: the mean of " in done.out and "diptych evaluate" in done.out
    note = read_json(out / "environment.json")["average"]
    assert note["score"] >= max(note["alone"].values()) and len(note["alone"]) == 4
    score = scorer(held_out(runs["full0"]))
    assert score(TrainedModel.load(out, "cpu")) == pytest.approx(note["score"])
    assert {k: score(TrainedModel.load(Path(k), "cpu")) for k in note["alone"]} == pytest.approx(note["alone"])
    want = mean_of([weights_of(Path(r)) for r in note["runs"]])
    found = TrainedModel.load(out, "cpu").model.state_dict()
    assert all(torch.allclose(found[n], v, atol=1e-6) for n, v in want.model.items())
    assert "holds a run already" in cli("soup", *runs.values(), "--out", out).err


def test_a_soup_of_runs_on_captions(base: str, tmp_path: Path) -> None:
    made = []
    for seed in (0, 1):
        place = tmp_path / str(seed)
        made.append(fit(base, TOWER_WAYS["captions"], "scenes:small?length=200", place, seed=seed, settings={"lr": 1e-3}, **QUICK))
    held = held_out(made[0])
    result = soup(made, scorer(held, 20), tmp_path / "soup")
    model = TrainedModel.load(tmp_path / "soup", "cpu")
    samples = [held[i] for i in range(20)]
    scores = model.embed_image([s.image for s in samples]) @ model.embed_text([s.captions[0] for s in samples]).T  # type: ignore[misc]
    texts = np.array([s.captions[0] for s in samples])
    right = [np.mean([texts[j] == texts[i] for i, j in enumerate(m.argmax(1))]) for m in (scores, scores.T)]
    assert result.score == pytest.approx(np.mean(right)) and result.score >= max(result.alone)
    assert len(checkpoints(tmp_path / "soup" / "checkpoints")) == 1


def test_what_makes_no_soup_is_refused(runs: dict[str, Path], base: str, data: str, tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match="two runs or more, not 1 run"):
        soup([runs["full0"]], lambda model: 0.0, tmp_path / "soup")
    other = run(tmp_path / "other", "embed_dim=16")
    with pytest.raises(DiptychError, match=r"not of one model: parts.space.image.weight is \(24, 32\) in one and \(16, 32\)"):
        soup([runs["full0"], other], lambda model: 0.0, tmp_path / "soup")
    with pytest.raises(DiptychError, match="is not a run"):
        soup([runs["full0"], tmp_path], lambda model: 0.0, tmp_path / "soup")
    prompts = fit(base, TOWER_WAYS["coop"], data, tmp_path / "coop", shots=1, **QUICK)
    with pytest.raises(DiptychError, match="prompts cannot be merged"):
        soup([runs["full0"], prompts], lambda model: 0.0, tmp_path / "soup")
    with pytest.raises(DiptychError, match="learned from all of its few pictures"):
        held_out(prompts)
    assert not (tmp_path / "soup").exists()
