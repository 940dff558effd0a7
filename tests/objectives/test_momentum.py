"""Contrast with a momentum copy: the loss, its queue and its soft targets against plain references, and runs that resume
exactly."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diptych.config.recipe import load_recipe
from diptych.core.errors import DiptychError
from diptych.inference.load import load
from diptych.objectives.contrastive import info_nce
from diptych.objectives.losses.momentum import FeatureQueue, momentum_info_nce
from diptych.objectives.matching import mine_negatives
from diptych.training.loop import train
from diptych.training.start.setup import Setup, set_up, training_loader

FAST = [f"parts.{p}.{k}" for p in ("vision", "text") for k in ("depth=1", "width=32", "heads=2")]
FAST += ["embed_dim=16", "precision=fp32", "trackers=[]", "device=cpu", "data.train=scenes:small?length=64"]
FAST += ["data.tokenizer.vocab_size=320", "stages.0.batch_size=8", "stages.0.warmup=1", "stages.0.lr=0.01"]


def setup_of(*overrides: str) -> Setup:
    return set_up(load_recipe("blip", [*FAST, *overrides]))


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    x = rng.standard_normal(shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(x: list[float]) -> np.ndarray:
    e = np.exp(np.array(x) - max(x))
    return e / e.sum()


def reference(
    image: np.ndarray, text: np.ndarray, image_keys: np.ndarray, text_keys: np.ndarray, scale: float, alpha: float, same: np.ndarray
) -> float:
    """ALBEF's contrastive loss sample by sample: only the keys that are no false negatives of the row are listed."""
    losses = []
    for queries, copy, keys in ((image, image_keys, text_keys), (text, text_keys, image_keys)):
        for i in range(len(queries)):
            columns = [k for k in range(len(keys)) if k == i or not same[i, k]]
            p = softmax([scale * queries[i] @ keys[k] for k in columns])
            q = alpha * softmax([scale * copy[i] @ keys[k] for k in columns])
            q[columns.index(i)] += 1 - alpha
            losses.append(-(q * np.log(p)).sum())
    return float(np.mean(losses))  # both directions have as many rows


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("held", [0, 7])
def test_the_loss_is_the_reference(alpha: float, held: int) -> None:
    rng = np.random.default_rng(0)
    image, text = unit(rng, 5, 6), unit(rng, 5, 6)
    image_keys, text_keys = unit(rng, 5 + held, 6), unit(rng, 5 + held, 6)
    meaning, key_meaning = np.array([1, 2, 1, 3, 4]), np.array([1, 2, 1, 3, 4, 9, 2, 4, -1, 8, 2, 7][: 5 + held])
    same = meaning[:, None] == key_meaning[None]
    given = [torch.tensor(x) for x in (image, text, image_keys, text_keys)]
    meanings = torch.tensor(meaning), torch.tensor(key_meaning)
    found = momentum_info_nce(*given, torch.tensor(9.0, dtype=torch.float64), alpha, *meanings)
    assert found.item() == pytest.approx(reference(image, text, image_keys, text_keys, 9.0, alpha, same), rel=1e-12)
    shares = [
        momentum_info_nce(*given, torch.tensor(9.0, dtype=torch.float64), alpha, *meanings, rows=r)
        for r in (slice(0, 2), slice(2, 5))
    ]
    assert (2 * shares[0] + 3 * shares[1]).item() / 5 == pytest.approx(found.item(), rel=1e-12), "two processes"
    every = momentum_info_nce(*given, torch.tensor(9.0, dtype=torch.float64), alpha)
    assert every.item() == pytest.approx(reference(image, text, image_keys, text_keys, 9.0, alpha, same & False), rel=1e-12)


def test_its_gradient_is_that_of_finite_differences_and_none_reaches_the_keys() -> None:
    rng = np.random.default_rng(1)
    image, text, image_keys, text_keys = (torch.tensor(unit(rng, n, 4), requires_grad=True) for n in (3, 3, 5, 5))
    scale = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    meaning = torch.tensor([1, 2, 1]), torch.tensor([1, 2, 1, 2, 5])

    def loss(i: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return momentum_info_nce(i, t, image_keys, text_keys, scale, 0.4, *meaning)

    assert torch.autograd.gradcheck(loss, (image, text))
    loss(image, text).backward()
    assert image_keys.grad is None and text_keys.grad is None
    eps, fixed = 1e-6, [x.detach() for x in (image, text, image_keys, text_keys)]
    taught = [scale.detach() * fixed[2][:3] @ fixed[3].T, scale.detach() * fixed[3][:3] @ fixed[2].T]

    def at(s: float) -> float:
        """The loss at another scale, with the targets of this one, which have no gradient."""
        total = 0.0
        for queries, keys, logits in ((fixed[0], fixed[3], taught[0]), (fixed[1], fixed[2], taught[1])):
            same = (meaning[0][:, None] == meaning[1]) & ~torch.eye(3, 5, dtype=torch.bool)
            q = 0.4 * logits.masked_fill(same, -np.inf).softmax(1) + 0.6 * torch.eye(3, 5)
            log_p = (s * queries @ keys.T).masked_fill(same, -np.inf).log_softmax(1)
            total -= float(torch.where(same, 0.0, q * log_p).sum(1).mean()) / 2
        return total

    assert scale.grad is not None
    assert scale.grad.item() == pytest.approx((at(4 + eps) - at(4 - eps)) / 2 / eps, rel=1e-6)


def test_hard_targets_with_the_students_own_keys_are_info_nce() -> None:
    rng = np.random.default_rng(2)
    image, text = torch.tensor(unit(rng, 6, 5)), torch.tensor(unit(rng, 6, 5))
    meaning = torch.tensor([0, 1, 2, 0, 4, 5])
    scale = torch.tensor(7.0, dtype=torch.float64)
    ours = momentum_info_nce(image, text, image, text, scale, 0.0, meaning, meaning)
    torch.testing.assert_close(ours, info_nce(image, text, 7.0, meaning))


@pytest.mark.parametrize("sizes", [[3, 3, 3, 3, 3], [4, 1, 10, 2], [8, 8], [25]])
def test_a_queue_holds_the_last_pairs(sizes: list[int]) -> None:
    queue, want, seen = FeatureQueue(8, 2), deque[tuple[float, float, int]](maxlen=8), 0
    for n in sizes:
        numbers = torch.arange(seen, seen + n)
        known = seen % 2 == 0
        queue.push(numbers[:, None].expand(n, 2) + 0.0, -numbers[:, None].expand(n, 2) + 0.0, numbers if known else None)
        want.extend((float(k), -float(k), int(k) if known else -1) for k in numbers)
        seen += n
        image, text, meaning = queue.entries()
        assert sorted(zip(image[:, 1].tolist(), text[:, 0].tolist(), meaning.tolist(), strict=True)) == sorted(want)


def step(setup: Setup, number: int) -> tuple[float, Any]:
    """One step by hand: the loss, and the pass."""
    model, objective = setup.model.train(), setup.objectives["info_nce"]
    p = model.encode(training_loader(setup, setup.recipe.stages[0], setup.source).batch(number))
    loss = objective(p)
    loss.backward()
    with torch.no_grad():
        for q in [*model.parameters(), *objective.parameters()]:
            if q.grad is not None:
                q -= 0.1 * q.grad
                q.grad = None
    objective.after_step(lambda *values: list(values))  # type: ignore[operator]
    model.update_teachers()
    return loss.item(), p


def test_the_objective_is_the_loss_of_its_embeddings_its_teacher_and_its_queue() -> None:
    setup = setup_of("stages.0.objectives.info_nce.queue=12", "stages.0.objectives.info_nce.ramp=16", "teachers.ema.decay=0.5")
    objective: Any = setup.objectives["info_nce"]
    held: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for number, alpha in enumerate((0.0, 0.2, 0.4, 0.4)):
        assert objective.alpha == pytest.approx(alpha) and objective.metrics()["soft"] == pytest.approx(alpha)
        scale = float(objective.scale.detach())
        found, p = step(setup, number)
        student, copy = (
            [p[f"{who}{side}.embedding"].detach().double().numpy() for side in ("image", "text")] for who in ("", "ema:")
        )
        meaning = p["text"].meaning.numpy()
        earlier = [np.concatenate([h[k] for h in held])[-12:] if held else np.empty((0, 16)) for k in range(2)]
        old = np.concatenate([h[2] for h in held])[-12:] if held else np.empty(0, dtype=int)
        keys = [np.concatenate([new, before]) for new, before in zip(copy, earlier, strict=True)]
        same = meaning[:, None] == np.concatenate([meaning, old])[None]
        assert found == pytest.approx(reference(*student, *keys, scale, alpha, same), rel=1e-5)
        held.append((*copy, meaning))
    assert not np.allclose(student[0], copy[0], atol=1e-3), "the teacher lags behind"


def test_validation_leaves_queue_and_ramp_as_they_are() -> None:
    setup = setup_of()
    objective: Any = setup.objectives["info_nce"]
    step(setup, 0)
    before = {name: x.clone() for name, x in objective.named_buffers()}
    with torch.no_grad():
        objective(setup.model.eval().encode(training_loader(setup, setup.recipe.stages[0], setup.source).batch(5)))
    objective.after_step(lambda *values: list(values))
    assert before["seen"] == 8 and before["queue.count"] == 8
    assert all(torch.equal(x, before[name]) for name, x in objective.named_buffers())


def test_a_run_that_resumes_has_the_same_queue_and_weights(tmp_path: Path) -> None:
    """The queue has been gone round, the ramp is not at its end, and the matching draws its negatives at the learned scale."""
    given = [*FAST, "stages.0.schedule=constant", "stages.0.objectives.info_nce.queue=20", "stages.0.objectives.info_nce.ramp=100"]
    train(load_recipe("blip", [*given, "budget=72 samples"]), tmp_path / "whole")
    train(load_recipe("blip", [*given, "budget=40 samples"]), tmp_path / "parts")
    train(load_recipe("blip", [*given, "budget=72 samples"]), tmp_path / "parts", resume=True)
    for group in ("model", "objectives", "ema", "optimizer"):
        one, other = (
            load_file(sorted((tmp_path / name / "checkpoints").glob("step-*"))[-1] / f"{group}.safetensors")
            for name in ("whole", "parts")
        )
        assert set(one) == set(other) and all(torch.equal(one[k], other[k]) for k in one), group
        if group == "objectives":
            assert (
                one["info_nce.queue.count"] == 72 and one["info_nce.seen"] == 72 and one["info_nce.queue.image"].shape == (20, 16)
            )
    load(tmp_path / "parts")  # for scoring, without the teacher


def test_wrong_pairs_are_drawn_with_the_weights_of_albef() -> None:
    """softmax(scale · similarity) + floor, without the own pair and pairs that mean the same; either side by its own
    similarities."""
    torch.manual_seed(0)
    rng = np.random.default_rng(3)
    there, back, meaning = rng.uniform(-1, 1, (4, 4)), rng.uniform(-1, 1, (4, 4)), torch.tensor([0, 1, 2, 1])
    counts = np.zeros((2, 4, 4))
    for _ in range(4000):
        drawn = mine_negatives(torch.tensor(there), meaning, torch.tensor(3.0), torch.tensor(back), 0.05)
        for k in range(2):
            counts[k, np.arange(4), drawn[k].numpy()] += 1
    for k, similarity in enumerate((there, back)):
        for i in range(4):
            weights = softmax(list(3.0 * similarity[i])) + 0.05
            weights[[j for j in range(4) if j == i or meaning[j] == meaning[i]]] = 0
            np.testing.assert_allclose(counts[k, i] / 4000, weights / weights.sum(), atol=0.03)


def test_the_mining_follows_the_learned_scale() -> None:
    setup = setup_of()
    matching: Any = setup.objectives["matching"]
    assert matching.sharp.item() == pytest.approx(1 / 0.07, rel=1e-6) and not matching.sharp.requires_grad
    setup.objectives["info_nce"].logit_scale.data.fill_(np.log(30.0))  # type: ignore[union-attr, operator]
    assert matching.sharp.item() == pytest.approx(30, rel=1e-6)
    assert [name for name, _ in matching.named_parameters()] == ["head.weight", "head.bias"], "the scale is not its own"


@pytest.mark.parametrize("first", ["grouped_tokens", "matching"])
def test_the_mining_follows_a_scale_that_is_shared(first: str) -> None:
    """In whichever order the two objectives are named."""
    entries = {
        "grouped_tokens": {"scale_of": "info_nce"},
        "matching": {"sharpness": "grouped_tokens", "momentum": "ema"},
        "info_nce": {"momentum": "ema"},
    }
    tree = load_recipe("blip", FAST).model_dump(mode="json", by_alias=True)
    tree["stages"] = [{"objectives": {name: entries[name] for name in sorted(entries, key=lambda name: name != first)}}]
    setup = set_up(load_recipe(tree))
    setup.objectives["info_nce"].logit_scale.data.fill_(np.log(30.0))  # type: ignore[union-attr, operator]
    matching: Any = setup.objectives["matching"]
    assert matching.sharp.item() == pytest.approx(30, rel=1e-6) and not matching.sharp.requires_grad


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["teachers={}"], "there is no teacher 'ema'"),
        (
            ["stages.0.objectives.info_nce={soft: 0.4}"],
            "soft, ramp and queue need a momentum copy; set momentum to a teacher's name",
        ),
        (["stages.0.objectives.info_nce={momentum: ema, ramp: 100}"], "soft is 0; set soft, say to 0.4, or ramp: 0"),
        (["stages.0.objectives.info_nce={momentum: ema, hard_negatives: true}"], "hard_negatives have no momentum keys"),
        (["stages.0.objectives.info_nce={momentum: ema, soft: 1.5}"], "info_nce.soft"),
        (["stages.0.objectives.info_nce={momentum: ema, group: 2}"], "processes would hold different queues"),
        (["stages.0.objectives.matching={negatives: random, momentum: ema}"], "momentum is for mined negatives; remove it"),
        (["stages.0.objectives.matching={negatives: random, sharpness: info_nce}"], "sharpness is for mined negatives"),
        (["stages.0.objectives.matching={negatives: random, floor: 0.1}"], "floor is for mined negatives"),
        (
            ["stages.0.objectives.matching.sharpness=next_token"],
            r"matching.sharpness: next_token has no learned scale; give another objective, or a number",
        ),
    ],
)
def test_what_does_not_fit_is_named(overrides: list[str], said: str) -> None:
    with pytest.raises(DiptychError, match=said):
        setup_of(*overrides)
