"""Preference optimisation against plain NumPy in float64: scores of answers, losses, gradients, rows of any padding, pieces."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from conversations_fixture import SMALL, picture
from diptych.config.recipe import load_recipe
from diptych.core.batch import Batch
from diptych.core.errors import DiptychError
from diptych.data.sources import open_source
from diptych.objectives.preference import losses
from diptych.training.distributed import Cluster
from diptych.training.flops import FlopMeter
from diptych.training.gradient import BatchGradient, Pieces, Share
from diptych.training.start.setup import Setup, loader_of, set_up

NAMES = ("preferences.logps", "reference:preferences.logps")


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def table(folder: Path) -> str:
    """Pairs about no, one and two images, with answers of very different lengths."""
    red, blue = picture(folder / "red.png", (200, 20, 20)), picture(folder / "blue.png", (20, 20, 200))
    rows = [
        {"image": red, "prompt": "what colour?", "chosen": "red", "rejected": "blue"},
        {"prompt": "one and one?", "chosen": "two", "rejected": "three"},
        {"images": [red, blue], "prompt": "<image> or <image>?", "chosen": "a red one, then a blue one", "rejected": "a red one"},
        {"image": blue, "prompt": "describe", "chosen": "a blue field, " * 4 + "blue", "rejected": "a red field, " * 4 + "red"},
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"preferences:{folder / 'pairs.jsonl'}"


def of(address: str, *options: str, batch_size: int = 4) -> tuple[Setup, Batch]:
    """The third stage of llava-dpo with a tiny random model, of which the adapters have moved away from the reference."""
    recipe = load_recipe("llava-dpo", [*SMALL, f"data.train={address}", f"stages.2.data={address}", *options])
    torch.manual_seed(0)
    setup = set_up(recipe, open_source(address), device=torch.device("cpu"))
    setup.model.requires_grad_(False)
    for adapter in setup.model.adapters.values():
        for p in adapter.own():  # type: ignore[operator]
            p.data.normal_(0, 0.2)
            p.requires_grad_(True)
    setup.model.train()
    setup.objectives.train()
    loader = loader_of(setup, recipe.stages[2], open_source(address), batch_size, 0, "none")
    return setup, loader.batch(0)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Setup, Batch]:
    return of(table(tmp_path_factory.mktemp("pairs")))


def expected(setup: Setup, batch: Batch, **o: float) -> float:
    """The loss of a batch, pair by pair and token by token, from the log-probabilities alone."""
    p = setup.model.encode(batch)
    own, before = (p[name].detach().double().numpy() for name in NAMES)
    beta, shift = o.get("beta", 0.1), o.get("shift", 0.0)
    total = []
    for b in range(len(batch["preferences"])):
        ratios, generation = [], 0.0
        for side, name in enumerate(("chosen", "rejected")):
            rows = getattr(batch["preferences"], name)
            sums, weights, plain, count = 0.0, 0.0, 0.0, 0
            for t in range(1, rows.ids.shape[1]):
                if not rows.learned[b, t]:
                    continue
                w = o.get("span_weight", 1.0) if rows.marked[b, t] else 1.0
                sums += w * (own[side, b, t - 1] - before[side, b, t - 1])
                weights += w
                plain, count = plain + own[side, b, t - 1], count + 1
            ratios.append(sums / weights if o.get("normalise") else sums)
            if side == 0:
                generation = -plain / count
        eps, m = o.get("smoothing", 0.0), beta * (ratios[0] - ratios[1])
        dpo = -(1 - eps) * np.log(sigmoid(m)) - eps * np.log(sigmoid(-m))
        if o.get("robust"):
            dpo = (-(1 - eps) * np.log(sigmoid(m)) + eps * np.log(sigmoid(-m))) / (1 - 2 * eps)
        bco = -np.log(sigmoid(beta * ratios[0] - shift)) - np.log(sigmoid(-(beta * ratios[1] - shift)))
        total.append(o.get("preference", 1.0) * dpo + o.get("quality", 0.0) * bco + o.get("generation", 0.0) * generation)
    return float(np.mean(total))


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.3},
        {"smoothing": 0.2},
        {"smoothing": 0.2, "robust": True},
        {"beta": 0.5, "span_weight": 5.0, "normalise": True},
        {"preference": 0.8, "quality": 0.2, "generation": 1.0, "shift": 0.4},
    ],
    ids=lambda o: "-".join(o),
)
def test_loss_is_its_formula(pairs: tuple[Setup, Batch], options: dict[str, float]) -> None:
    setup, batch = pairs
    objective = setup.objectives["dpo"]
    kept = {name: getattr(objective, name) for name in [*options, "beta"]}
    for name, value in options.items():
        setattr(objective, name, value)
    if "shift" in options:
        objective.shift = True
        objective.mean.fill_(options["shift"])
    try:
        found = float(objective(setup.model.encode(batch)).detach())
    finally:
        for name, value in kept.items():
            setattr(objective, name, value)
        objective.mean.zero_()
    assert found == pytest.approx(expected(setup, batch, **options), rel=1e-4)


@pytest.mark.parametrize("robust", [False, True])
def test_gradients_of_the_formulas(robust: bool) -> None:
    torch.manual_seed(0)
    logps = (-torch.rand(2, 3, 5, dtype=torch.float64) - 0.1).requires_grad_(True)
    learned = torch.rand(2, 3, 5) < 0.7
    learned[..., 0] = True
    marked = (torch.rand(2, 3, 5) < 0.4) & learned

    def loss(x: torch.Tensor) -> torch.Tensor:
        score = losses.answer_scores(x, learned, marked, 3.0, True)
        dpo = losses.dpo_loss(score[0] - score[1], 0.7, 0.1, robust)
        return (dpo + losses.quality_loss(score[0], score[1], 0.2) + losses.generation_loss(x[0], learned[0])).mean()

    assert torch.autograd.gradcheck(loss, (logps,))


def test_reference_has_no_gradient_and_the_model_has(pairs: tuple[Setup, Batch]) -> None:
    setup, batch = pairs
    setup.model.zero_grad()
    setup.objectives["dpo"](setup.model.encode(batch)).backward()
    named = {n: p.grad for n, p in setup.model.named_parameters() if p.requires_grad}
    assert named and all(g is not None for g in named.values())
    assert not any(n.startswith("teachers.") for n in named)
    assert max(float(g.abs().max()) for g in named.values() if g is not None) > 0


def test_padding_and_company_do_not_change_log_probabilities(pairs: tuple[Setup, Batch], tmp_path: Path) -> None:
    """A pair alone has the probabilities that it has among longer ones (trl's issue 5785)."""
    setup, batch = pairs
    whole = setup.model.encode(batch)["preferences.logps"].sum(-1)
    address = table(tmp_path)
    loader = loader_of(setup, setup.recipe.stages[2], open_source(address), 4, 0, "none")
    for i in range(4):
        alone = loader.rows(0, i, i + 1)
        assert torch.allclose(setup.model.encode(alone)["preferences.logps"].sum(-1)[:, 0], whole[:, i], atol=1e-4)
    pads = batch["preferences"]
    grown = replace(
        pads, **{k: type(v).cat([v], [0], v.ids.shape[1] + 9) for k, v in vars(pads).items() if k in ("chosen", "rejected")}
    )
    assert torch.allclose(setup.model.encode(batch.with_(preferences=grown))["preferences.logps"].sum(-1), whole, atol=1e-4)


def test_images_reach_both_answers(pairs: tuple[Setup, Batch]) -> None:
    """Other pictures give other probabilities of either answer, of the pairs with pictures alone (trl's issue 5285)."""
    setup, batch = pairs
    p = batch["preferences"]
    shown = {name: int((getattr(p, name).ids < 0).sum()) for name in ("chosen", "rejected")}
    assert shown["chosen"] == shown["rejected"] == len(p.images) * setup.model.part("connector").tokens and len(p.images) == 4
    other = batch.with_(preferences=replace(p, images=replace(p.images, pixels=255 - p.images.pixels)))
    same = setup.model.encode(batch)["preferences.logps"].sum(-1)
    changed = setup.model.encode(other)["preferences.logps"].sum(-1)
    pictured = (p.chosen.ids < 0).any(1)
    assert ((same - changed).abs() > 1e-6).all(0).tolist() == pictured.tolist()


def test_pieces_give_the_whole_batch(tmp_path: Path) -> None:
    address = table(tmp_path)
    setup, _ = of(address, "stages.2.objectives.dpo={quality: 0.2, generation: 1}")
    loader = loader_of(setup, setup.recipe.stages[2], open_source(address), 4, 0, "none")
    found = []
    for micro in (None, 1, 2):
        setup.model.zero_grad()
        gradient = BatchGradient(setup.model, Cluster(), False, 0, FlopMeter())
        chosen = torch.nn.ModuleDict({"dpo": setup.objectives["dpo"]})
        taken = gradient(0, Pieces(Share(loader, 0, Cluster(), micro), 0), chosen, {"dpo": 1.0})
        grads = torch.cat([p.grad.flatten() for p in setup.model.parameters() if p.grad is not None])
        found.append((float(taken.losses["dpo"]), grads))
    for loss, grads in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-4)
        assert torch.allclose(grads, found[0][1], atol=1e-5)


def test_shift_is_the_mean_reward_of_the_steps(pairs: tuple[Setup, Batch]) -> None:
    setup, batch = pairs
    objective = setup.objectives["dpo"]
    objective._now = [0.0] * 4
    objective(setup.model.encode(batch))
    objective.after_step(lambda *values: [2 * v for v in values])  # two processes with the same pairs
    p = setup.model.encode(batch)
    sums = [(p[a] - p[b]).sum(-1).mean() for a, b in [NAMES]]
    assert float(objective.mean) == pytest.approx(0.1 * float(sums[0].detach()), rel=1e-4)
    objective._now = [2.0, 8.0, 1.0, 1.0]
    objective.after_step(lambda *values: list(values))
    assert float(objective.mean) == pytest.approx((0.1 * float(sums[0].detach()) + 2.0) / 2, rel=1e-4)
    assert objective.metrics()["margin"] == 0.5
    objective.steps.zero_(), objective.mean.zero_()


def test_nothing_to_learn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match="nothing would be learned"):
        of(table(tmp_path), "stages.2.objectives.dpo={preference: 0}")


# --- reward models ---


def test_reward_is_its_formula_and_its_gradient(tmp_path: Path) -> None:
    """The linear map of the state at the last token of each answer, pair by pair; and trl's loss of such rewards."""
    options = ["stages.2.objectives={reward: {centre: 0.3, margin: 0.2}}", "teachers={}"]
    setup, batch = of(table(tmp_path), *options)
    objective = setup.objectives["reward"]
    found = objective(setup.model.encode(batch))
    states = setup.model.encode(batch)["preferences.states"].detach().double().numpy()
    w = objective.head.weight.detach().double().numpy()[0]
    total = []
    for b in range(4):
        r = []
        for side, name in enumerate(("chosen", "rejected")):
            learned = getattr(batch["preferences"], name).learned[b].tolist()
            end = max(t for t, yes in enumerate(learned) if yes)
            r.append(float(states[side, b, end] @ w))
        total.append(-np.log(sigmoid(np.array(r[0] - r[1] - 0.2))) + 0.3 * (r[0] + r[1]) ** 2)
    assert float(found.detach()) == pytest.approx(float(np.mean(total)), rel=1e-4)
    found.backward()
    assert float(objective.head.weight.grad.abs().max()) > 0
    assert any(float(p.grad.abs().max()) > 0 for p in setup.model.parameters() if p.grad is not None)

    chosen, rejected = (torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: losses.ranking_loss(a, b, 0.2), (chosen, rejected))


def test_facts_reach_the_reward_model(tmp_path: Path) -> None:
    picture(tmp_path / "red.png", (200, 20, 20))
    row = {"image": "red.png", "prompt": "what?", "chosen": "red", "rejected": "blue"}
    lengths = {}
    for name, facts in (("none", []), ("some", ["a red field", "no key"])):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({**row, "facts": facts}) + "\n" + json.dumps({**row, "id": "b"}) + "\n")
        options = [
            "data.fields={preferences: {kind: preferences, facts: behind}}",
            "stages.2.objectives={reward: 1}",
            "teachers={}",
        ]
        _, batch = of(f"preferences:{tmp_path / name}.jsonl", *options, batch_size=2)
        lengths[name] = batch["preferences"].chosen.mask.sum(1).tolist()
    assert lengths["none"][0] == lengths["none"][1] == min(lengths["some"]) < max(lengths["some"])
