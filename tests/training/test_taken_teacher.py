"""Teachers that are taken after a stage: PRIOR's text-only reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import diptych as dp
from diptych.config.recipe import load_recipe
from diptych.core.errors import DiptychError
from diptych.core.files import read_json
from diptych.training.loop import Trainer, train
from diptych.training.start.setup import set_up, training_loader
from diptych.training.start.teachers import begin_stage

FAST = ["stages.0.batch_size=8", "stages.1.batch_size=8", "stages.0.ema=0", "stages.1.ema=0", "stages.1.schedule=constant"]
SMALL = ["parts.lm.kind=random", "parts.vision={kind: vit, depth: 1, frozen: true}", "data.image_size=32", "device=cpu", *FAST]


def small(*overrides: str) -> Any:
    return load_recipe("prior", [*SMALL, "stages.0.schedule=constant", "stages.0.share=0.5", "stages.1.share=0.5", *overrides])


def weights(run: Path, name: str = "model") -> dict[str, torch.Tensor]:
    return load_file(sorted((run / "checkpoints").glob("step-*"))[-1] / f"{name}.safetensors")


def log_softmax(x: torch.Tensor) -> np.ndarray:
    y = x.detach().numpy().astype(np.float64)
    y = y - y.max(-1, keepdims=True)
    result: np.ndarray = y - np.log(np.exp(y).sum(-1, keepdims=True))
    return result


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "prior"
    train(small("budget=64 samples"), path)
    return path


def test_the_reference_learned_the_captions_and_the_model_begins_again(run: Path) -> None:
    """The teacher has adapters that learned; those of the model itself are as at the start; the shared weights are saved
    nowhere."""
    found = weights(run)
    taught = {k: v for k, v in found.items() if k.startswith("teachers.reference.") and "lora_B" in k}
    own = {k: v for k, v in found.items() if k.startswith("parts.lm.") and "lora_B" in k}
    assert taught and len(taught) == len(own)
    assert all(bool(v.any()) for v in taught.values()) and not any(bool(v.any()) for v in own.values())
    assert all("lora_" in k for k in found if ".lm." in k or k.startswith("parts.lm.")), "weights that never change are not saved"
    assert read_json(sorted((run / "checkpoints").glob("step-*"))[-1] / "state.json")["taken"] == ["reference"]


def test_the_loss_is_that_of_the_formula_with_this_reference() -> None:
    """NumPy, float64: weights from the teacher's own language model, which differs from the student's."""
    setup = set_up(small())
    model: Any = setup.model
    torch.manual_seed(1)
    for name, p in model.part("lm").named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.5)
    trained = {n: p.detach().clone() for n, p in model.part("lm").named_parameters() if "lora_" in n}
    begin_stage(setup.recipe, model, "main", taken := set(), resumed=False)
    assert taken == {"reference"}
    assert not any(bool(p.any()) for n, p in model.part("lm").named_parameters() if "lora_B" in n)
    teacher = model.teachers["reference"].parts["lm"]
    assert all(torch.equal(dict(teacher.named_parameters())[n], p) for n, p in trained.items())
    base = {n: p for n, p in model.part("lm").named_parameters() if "lora_" not in n}
    assert base and all(dict(teacher.named_parameters())[n] is p for n, p in base.items()), "what never changes is there once"
    model.train_only(["connector"])
    batch = training_loader(setup, setup.recipe.stages[1], setup.source).batch(0)
    p = model.eval().encode(batch)
    ids, mask = batch["text"].ids, batch["text"].mask
    blind, seen = log_softmax(teacher.text_logits(ids, mask)), log_softmax(p["text.logits"])
    assert np.abs(blind - log_softmax(model.part("lm").text_logits(ids, mask))).max() > 1e-2
    total, count = 0.0, 0
    for b in range(len(ids)):
        words = [(t, int(ids[b, t + 1])) for t in np.flatnonzero(mask[b, 1:].numpy())]
        w = np.array([1 - np.exp(blind[b, t, word]) for t, word in words])
        w = w / w.sum() * len(words)
        total -= sum(x * seen[b, t, word] for x, (t, word) in zip(w, words, strict=True))
        count += len(words)
    objective: Any = setup.objectives["prior_next_token"]
    loss = objective(p)
    assert loss.item() == pytest.approx(total / count, rel=1e-5)
    objective.per = "sample"
    assert objective(p).item() == pytest.approx(total / len(ids), rel=1e-5)
    loss.backward()
    assert not any(q.grad is not None for q in [*teacher.parameters(), *model.part("lm").parameters()])
    assert all(q.grad is not None for q in model.part("connector").parameters())


def test_the_first_stage_reads_texts_alone() -> None:
    setup = set_up(small())
    batch = training_loader(setup, setup.recipe.stages[0], setup.source).batch(0)
    assert set(batch.fields) == {"text"}
    model: Any = setup.model.eval()
    ids, mask = batch["text"].ids, batch["text"].mask
    logp = log_softmax(model.part("lm").text_logits(ids, mask))
    losses = [-logp[b, t, int(ids[b, t + 1])] for b, t in zip(*np.nonzero(mask[:, 1:].numpy()), strict=True)]
    objective: Any = setup.objectives["next_token"]
    assert objective(model.encode(batch)).item() == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("stop", [16, 32, 48])
def test_it_is_saved_and_resumed_exactly(run: Path, tmp_path: Path, stop: int) -> None:
    """A run stopped within the first stage, between the two, and within the second, then continued to the end of the whole run."""
    parts = tmp_path / "parts"
    first = min(stop, 32)
    early = [
        f"stages.0.share={first}",
        f"stages.1.share={max(stop - first, 1e-9)}",
    ]  # the stages end where those of the whole run do
    train(small(f"budget={stop} samples", *early), parts)
    train(small("budget=64 samples"), parts, resume=True)
    for name in ("model", "objectives", "optimizer"):
        a, b = weights(run, name), weights(parts, name)
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), name


def test_a_stage_that_goes_on_gets_its_weights_back(tmp_path: Path) -> None:
    path = tmp_path / "run"
    train(small("budget=32 samples"), path)
    trained = {k: v for k, v in weights(path).items() if k.startswith("teachers.reference.") and "lora_" in k}
    trainer = Trainer(small("budget=128 samples"), path, resume=True)
    begin_stage(trainer.recipe, trainer.setup.model, "reference", trainer.taken, resumed=False)
    now = trainer.setup.model.state_dict()
    assert not trainer.taken and all(torch.equal(now[k.removeprefix("teachers.reference.")], v) for k, v in trained.items())


def test_an_earlier_stage_that_goes_on_gets_the_weights_back_too() -> None:
    """The student trained after the stage is set aside, and the teacher is taken anew when its stage ends."""
    setup = set_up(small())
    model: Any = setup.model
    own = {n: p for n, p in model.part("lm").named_parameters() if "lora_B" in n}

    def fill(value: float) -> None:
        for p in own.values():
            torch.nn.init.constant_(p, value)

    first = setup.recipe.stages[0].model_copy(update={"name": "first"})
    recipe = setup.recipe.model_copy(update={"stages": [first, *setup.recipe.stages]})
    begin_stage(recipe, model, "reference", taken := set(), resumed=False)
    fill(1)  # learned in the stage
    begin_stage(recipe, model, "main", taken, resumed=False)
    fill(2)  # learned after it
    begin_stage(recipe, model, "first", taken, resumed=False)
    assert not taken and all(bool((p == 1).all()) for p in own.values())
    begin_stage(recipe, model, "first", taken, resumed=True)
    fill(3)
    begin_stage(recipe, model, "reference", taken, resumed=False)
    fill(4)
    begin_stage(recipe, model, "main", taken, resumed=False)
    kept = dict(model.teachers["reference"].parts["lm"].named_parameters())
    assert all(bool((kept[n] == 4).all()) and bool((own[n] == 3).all()) for n in own)


def test_without_restore_the_model_keeps_what_it_learned() -> None:
    setup = set_up(small("teachers.reference.restore=false"))
    model: Any = setup.model
    start = {n: p.detach().clone() for n, p in model.teachers["reference"].parts["lm"].named_parameters() if "lora_B" in n}
    for name, p in model.part("lm").named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(p)
    model.update_teachers()
    kept = dict(model.teachers["reference"].parts["lm"].named_parameters())
    assert all(torch.equal(kept[n], p) for n, p in start.items()), "it follows no step"
    begin_stage(setup.recipe, model, "main", set(), resumed=False)
    own = dict(model.part("lm").named_parameters())
    assert all(bool((kept[n] == 1).all()) and bool((own[n] == 1).all()) for n in start)


def test_scoring_needs_no_teacher_and_the_untuned_reference_is_a_variant(run: Path, tmp_path: Path) -> None:
    model: Any = dp.load(run)
    image = np.zeros((32, 32, 3), np.uint8)
    assert not model.model.teachers and model.loglikelihood([image], ["a red fox"]).shape == (1,)
    recipe = load_recipe("prior@self", [o for o in SMALL if not o.startswith("stages.1")])
    assert len(recipe.stages) == 1 and not recipe.teachers and not recipe.adapters
    assert set_up(recipe).objectives["prior_next_token"].blind == "text.blind_logits"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("teachers.reference.after=main", r"teachers\.reference\.after: 'main' is no stage that another one follows"),
        ("teachers.reference.after=refrence", r"'refrence' is no stage.*reference"),
        ("teachers.reference={of: [lm], restore: true}", r"restore: only for a teacher that is taken after a stage; set after"),
        ("teachers.reference={after: reference, from: runs/x}", r"after: .*not both"),
        ("stages.1.objectives.prior_next_token.reference=refrence", r"needs 'refrence:text\.blind_logits': there is no teacher 'refrence'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(override: str, message: str) -> None:
    with pytest.raises(DiptychError, match=message):
        set_up(small(override))
