"""Mixup in InfoNCE: its formula in float64, the draws, pieces and processes, resuming, and refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diptych.config.recipe import load_recipe
from diptych.core.errors import DiptychError
from diptych.core.files import read_jsonl
from diptych.models.space import unit
from diptych.objectives.contrastive import info_nce, mixed_info_nce
from diptych.training.loop import train
from diptych.training.start.setup import set_up
from engine_fixture import TINY, Little
from launch_fixture import launch

MIXED = "stages.0.objectives.info_nce.mixup=0.4"


def reference(image: np.ndarray, text: np.ndarray, scale: float, share: float, meaning: list[int] | None, rows: range) -> float:
    """By loops, in float64."""
    n, total = len(image), 0.0
    for a, b in ((image, text), (text, image)):
        for i in rows:
            partner = i + 1 if i % 2 == 0 else i - 1
            logits = {j: scale * float(a[i] @ b[j]) for j in range(n)}
            left_out = [
                j
                for j in range(n)
                if meaning and j not in (i, partner) and (meaning[j] == meaning[i] or meaning[j] == meaning[partner])
            ]
            norm = math.log(sum(math.exp(v) for j, v in logits.items() if j not in left_out))
            total += -share * (logits[i] - norm) - (1 - share) * (logits[partner] - norm)
    return total / (2 * len(rows))


@pytest.mark.parametrize("meaning", [None, [0, 1, 2, 3, 0, 4, 3, 5]])
@pytest.mark.parametrize("rows", [None, slice(2, 6), slice(4, 8)])
def test_the_loss_is_the_weighted_sum_of_both_targets(meaning: list[int] | None, rows: slice | None) -> None:
    torch.manual_seed(0)
    image, text = (unit(torch.randn(8, 5)).double().requires_grad_() for _ in range(2))
    known = None if meaning is None else torch.tensor(meaning)

    def loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return mixed_info_nce(a, b, 3.0, 0.7, known, rows)

    own = range(8) if rows is None else range(rows.start, rows.stop)
    want = reference(image.detach().numpy(), text.detach().numpy(), 3.0, 0.7, meaning, own)
    assert float(loss(image, text).detach()) == pytest.approx(want, rel=1e-10)
    assert torch.autograd.gradcheck(loss, (image, text))
    if meaning is None:
        plain = info_nce(image, text, 3.0, None, None, rows)
        assert float(mixed_info_nce(image, text, 3.0, 1.0, None, rows).detach()) == pytest.approx(float(plain.detach()), rel=1e-10)


def test_rows_in_pieces_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    image, text = (unit(torch.randn(8, 5)) for _ in range(2))
    whole = mixed_info_nce(image, text, 3.0, 0.3)
    monkeypatch.setattr("diptych.objectives.contrastive.ROWS", 3)
    torch.testing.assert_close(mixed_info_nce(image, text, 3.0, 0.3), whole)


def steps_of(little: Little, n: int) -> list[tuple[float, bool]]:
    mixer: Any = little.objectives["info_nce"].mixer
    mixer.drawn[1] = 0
    draws = []
    for _ in range(n):
        draws.append(mixer.draw())
        little.objectives["info_nce"].after_step(lambda *v: list(v))  # type: ignore[operator]
    return draws


def test_a_coin_and_a_share_for_each_step() -> None:
    little = Little("clip", MIXED)
    draws = steps_of(little, 2000)
    assert draws == steps_of(little, 2000)
    shares = np.array([share for share, _ in draws])
    assert 0.45 < np.mean([images for _, images in draws]) < 0.55
    assert abs(shares.mean() - 0.5) < 0.03 and abs(shares.var() - 1 / (4 * (2 * 0.4 + 1))) < 0.01  # of Beta(.4, .4)


@pytest.mark.parametrize("images", [True, False])
def test_pixels_or_pooled_texts_are_mixed(images: bool) -> None:
    little = Little("clip", MIXED, batch_size=4)
    mixer: Any = little.objectives["info_nce"].mixer
    mixer.drawn[1] = next(k for k, (share, chosen) in enumerate(steps_of(little, 50)) if chosen == images and 0.2 < share < 0.8)
    share, _ = mixer.draw()
    batch = little.loader.batch(0)
    pixels = batch["image"].pixels.numpy().astype(np.float64) / 127.5 - 1
    order = [1, 0, 3, 2]
    with torch.no_grad():
        p = little.model.encode(batch)
        pooled = p["text.tokens"].pooled.double().numpy()
        seen, read = p["mixed"].floats.numpy(), p["text.mixed_embedding"].numpy()
        np.testing.assert_allclose(seen, share * pixels + (1 - share) * pixels[order] if images else pixels, atol=1e-5)
        mixed = pooled if images else share * pooled + (1 - share) * pooled[order]
        want = mixed @ little.model.parts["space"].text.weight.double().numpy().T
        np.testing.assert_allclose(read, want / np.linalg.norm(want, axis=1, keepdims=True), atol=1e-5)
        loss = float(little.objectives["info_nce"](p))
        embedded = unit(little.model.parts["space"].image(little.model.parts["vision"](torch.from_numpy(seen)).pooled))
        meaning = None if batch["text"].meaning is None else batch["text"].meaning.tolist()
        scale = float(little.objectives["info_nce"].scale)
        assert loss == pytest.approx(reference(embedded.numpy(), read, scale, share, meaning, range(4)), rel=1e-4)
        little.model.eval()
        assert mixer.draw() == (1.0, True)
        p = little.model.encode(batch)
        plain = info_nce(p["image.embedding"], p["text.embedding"], scale, batch["text"].meaning)
        assert float(little.objectives["info_nce"](p)) == pytest.approx(float(plain), rel=1e-6)


def test_pieces_give_the_gradient_of_the_whole() -> None:
    for step in range(2):  # one with images mixed, one with texts
        little = Little("clip", MIXED)
        draws = steps_of(little, 50)
        little.objectives["info_nce"].mixer.drawn[1] = next(  # type: ignore[index, union-attr]
            k for k, (share, images) in enumerate(draws) if images == bool(step) and 0.2 < share < 0.8
        )
        whole, pieces = little.gradients(None), little.gradients(4)
        for name, grad in whole.items():
            torch.testing.assert_close(pieces[name], grad, atol=1e-5, rtol=1e-3, msg=name)


RUN = [MIXED, "stages.0.batch_size=8", "stages.0.warmup=2", "stages.0.schedule=constant", "data.image_size=48", "trackers=[]"]


def test_a_resumed_run_draws_on(tmp_path: Path) -> None:
    def run(name: str, samples: int, resume: bool = False) -> Path:
        train(load_recipe("clip", [*TINY, *RUN, f"budget={samples} samples"]), tmp_path / name, resume=resume)
        return tmp_path / name

    whole, parts = run("whole", 48), run("parts", 24)
    run("parts", 48, resume=True)
    for file in ("model", "objectives", "ema"):
        a, b = (load_file(sorted((d / "checkpoints").glob("step-*"))[-1] / f"{file}.safetensors") for d in (whole, parts))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), file
    assert (
        a
        and int(load_file(sorted((whole / "checkpoints").glob("step-*"))[-1] / "objectives.safetensors")["info_nce.mixer.drawn"][1])
        == 6
    )


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    settings = [*RUN, "budget=160 samples", "stages.0.optimizer=adamw"]
    launch([["clip", str(tmp_path / "two"), settings]])
    train(load_recipe("clip", [*TINY, *settings]), tmp_path / "one")
    for a, b in zip(*(read_jsonl(tmp_path / d / "metrics.jsonl") for d in ("two", "one")), strict=False):
        if a["step"] == b["step"]:
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-5), a["step"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["stages.0.objectives.info_nce.hard_negatives=true"], "mixup mixes captions, so none has hard_negatives"),
        (["parts.space.kind=queries"], "shared space"),
        (["stages.0.objectives.info_nce.mixup=-1"], "info_nce.mixup: expected"),
    ],
)
def test_what_cannot_be_mixed_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(DiptychError, match=said):
        set_up(load_recipe("clip", [*TINY, MIXED, *overrides]))


def test_an_odd_piece_is_refused() -> None:
    with pytest.raises(DiptychError, match="3 are encoded at once; make the stage's micro_batch"):
        Little("clip", MIXED).step(3)
