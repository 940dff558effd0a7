"""Teachers: averaged or frozen copies whose encodings objectives ask for by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diptych.config.recipe import load_recipe
from diptych.core.batch import Batch, Labels, Texts
from diptych.core.errors import DiptychError
from diptych.core.files import read_json
from diptych.inference.load import load
from diptych.objectives import Objective
from diptych.training.distributed import Cluster
from diptych.training.flops import FlopMeter
from diptych.training.gather import batch_length
from diptych.training.gradient import BatchGradient, Pieces, Share
from diptych.training.loop import Trainer, train
from diptych.training.start.setup import Setup, set_up, training_loader

SIZES = [f"parts.{p}.{k}" for p in ("vision", "text") for k in ("kind=clip", "depth=1", "width=32", "heads=2", "hidden=48")]
FAST = ["stages.0.batch_size=8", "precision=fp32", "trackers=[]", "device=cpu", "stages.0.warmup=1", "stages.0.lr=0.01"]
SMALL = [
    "data.train=scenes:small?length=64",
    *SIZES,
    "embed_dim=24",
    "parts.vision.patch=16",
    "data.tokenizer.vocab_size=320",
    *FAST,
]
SAME = "stages.0.objectives.same={kind: 'test_teachers:LikeTheTeacher', weight: 0.5, teacher: %s}"


class LikeTheTeacher(Objective):
    """Image and text embeddings near those of a teacher."""

    needs = ("image.embedding", "text.embedding")

    def __init__(self, model: Any, *, teacher: str = "ema"):
        super().__init__(model)
        self.teacher = teacher
        self.needs = (*self.needs, f"{teacher}:image.embedding", f"{teacher}:text.embedding")
        self.last: Any = None

    def forward(self, p: Any) -> torch.Tensor:
        pairs = [(p[n], p[f"{self.teacher}:{n}"]) for n in ("image.embedding", "text.embedding")]
        self.last = [theirs for _, theirs in pairs]
        return sum((1 - (mine * theirs).sum(-1)).mean() for mine, theirs in pairs)  # type: ignore[return-value]


def made(*overrides: str) -> Setup:
    return set_up(load_recipe("clip", [*SMALL, *overrides]))


def last(run: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(sorted((run / "checkpoints").glob("step-*"))[-1] / f"{name}.safetensors")


def stepped(setup: Setup, steps: int = 1) -> list[torch.Tensor]:
    """Train by hand: the losses of a few steps."""
    stage = setup.recipe.stages[0]
    loader = training_loader(setup, stage, setup.source)
    model, objectives = setup.model.train(), setup.objectives
    model.train_only(stage.train)
    learned = [p for m in (model, objectives) for p in m.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learned, 0.5)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        p = model.encode(loader.batch(step))
        loss = sum(objectives[n](p) for n in stage.objectives)
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()
        model.update_teachers()
        losses.append(loss.detach())  # type: ignore[union-attr]
    return losses


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "clip"
    train(load_recipe("clip", [*SMALL, "budget=32 samples"]), path)
    return path


def test_an_average_follows_by_its_formula() -> None:
    """θ' ← m θ' + (1 − m) θ after every step, in float64."""
    setup = made("teachers.ema={decay: 0.75}", SAME % "ema")
    teacher: Any = setup.model.teachers["ema"]
    student = dict(setup.model.parts.named_parameters())
    want = {n: p.detach().double().numpy().copy() for n, p in student.items()}
    for n, p in teacher.parts.named_parameters():
        assert torch.equal(p, student[n]), "it begins as the student"
    for _ in range(3):
        stepped(setup)
        want = {n: 0.75 * w + 0.25 * student[n].detach().double().numpy() for n, w in want.items()}
    assert set(want) == {n for n, _ in teacher.parts.named_parameters()}
    learned = []
    for n, p in teacher.parts.named_parameters():
        np.testing.assert_allclose(p.numpy(), want[n], atol=1e-6)
        if student[n].grad is not None and student[n].grad.abs().max() > 1e-4:  # type: ignore[union-attr]
            learned.append(n)
            assert not torch.equal(p, student[n]), f"{n} is the student's own"
    assert len(learned) > len(want) / 2


def test_only_named_parts_are_averaged_and_the_rest_is_the_students() -> None:
    setup = made("teachers.ema={decay: 0.5, of: [vision]}", SAME % "ema")
    teacher: Any = setup.model.teachers["ema"]
    assert {n.split(".")[0] for n, _ in teacher.parts.named_parameters()} == {"vision"}
    stepped(setup, 2)
    batch = training_loader(setup, setup.recipe.stages[0], setup.source).batch(5)
    setup.model.eval()
    p = setup.model.encode(batch)
    assert torch.equal(p["ema:text.embedding"], p["text.embedding"])
    assert not torch.allclose(p["ema:image.embedding"], p["image.embedding"])
    pooled = teacher.parts["vision"](batch["image"].floats).pooled  # its own tower, the student's map
    torch.testing.assert_close(
        p["ema:image.embedding"], torch.nn.functional.normalize(setup.model.parts["space"].image(pooled), dim=-1)
    )


@torch.no_grad()
def test_an_averaged_part_that_borrows_weights_has_them_from_the_students_own_part() -> None:
    small = [f"parts.{part}.{key}" for part in ("vision", "text") for key in ("depth=1", "width=32", "heads=2")]
    setup = set_up(load_recipe("blip", [*small, *FAST, "teachers.ema={decay: 0.5, of: [decoder]}"]))
    batch = training_loader(setup, setup.recipe.stages[0], setup.source).batch(0)
    model: Any = setup.model.eval()
    before = model.encode(batch)["ema:text.logits"]
    model.parts["text"].transformer.blocks[0].norm2.bias.add_(torch.randn(32))  # of the text tower, which the decoder computes with
    after = model.encode(batch)["ema:text.logits"]
    assert not torch.allclose(before, after, atol=1e-2)
    model.parts["decoder"].bias.add_(1.0)
    assert torch.equal(model.encode(batch)["ema:text.logits"], after), "the average's own"
    block = model.parts["text"].transformer.blocks[0]
    block.dropout.p = 0.5
    assert torch.equal(model.train().encode(batch)["ema:text.logits"], after) and block.dropout.training
    assert model.teachers["ema"].parts["decoder"].transformer.blocks[0]._of[0] is block


def test_no_gradient_reaches_a_teacher_and_it_stays_in_evaluation_mode() -> None:
    setup = made("teachers.ema={decay: 0.5}", SAME % "ema", "parts.vision.kind=vit", "parts.vision.dropout=0.5")
    stepped(setup)
    teacher: Any = setup.model.teachers["ema"]
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert not any(m.training for m in teacher.modules()) and setup.model.parts["vision"].training
    assert all(not x.requires_grad for x in setup.objectives["same"].last)  # type: ignore[union-attr]
    assert setup.model.parts["vision"].stem.conv1.weight.grad.any()  # type: ignore[union-attr, operator]


def test_a_teacher_computes_with_the_students_own_part_in_evaluation_mode_and_puts_its_mode_back() -> None:
    setup = made("teachers.ema={decay: 0.5, of: [vision]}", "parts.text.kind=transformer", "parts.text.dropout=0.5")
    model = setup.model
    model.train_only("all")
    model.train()
    text: Any = model.parts["text"]
    text.transformer.blocks[0].norm1.eval()  # a mode of its own, which is put back as well
    modes = {name: m.training for name, m in model.named_modules()}
    assert modes["parts.text"] and not modes["parts.text.transformer.blocks.0.norm1"]
    batch = training_loader(setup, setup.recipe.stages[0], setup.source).batch(0)
    one, other = (model.encode(batch)["ema:text.embedding"] for _ in range(2))
    assert torch.equal(one, other), "no dropout"
    assert not torch.equal(*(model.encode(batch)["text.embedding"] for _ in range(2)))
    assert {name: m.training for name, m in model.named_modules()} == modes


class TokensLikeTheTeacher(Objective):
    """Every pair of texts compared by the student's tokens of one and the teacher's of the other."""

    needs = ("text.token_embedding", "ema:text.token_embedding")
    couples = needs

    def forward(self, p: Any) -> torch.Tensor:
        mine, theirs = (p[n] * p["text"].mask[..., None] for n in self.needs)
        return torch.einsum("bte,ste->bs", mine, theirs).logsumexp(1).mean()


def test_a_teachers_tokens_of_texts_of_different_lengths_are_joined_from_micro_batches() -> None:
    given = "stages.0.objectives={tokens: {kind: 'test_teachers:TokensLikeTheTeacher'}}"
    setup = made("teachers.ema={decay: 0.5}", given)
    setup.model.train_only("all")
    loader = training_loader(setup, setup.recipe.stages[0], setup.source)
    assert len({loader.rows(0, i, i + 2)["text"].ids.shape[1] for i in range(0, 8, 2)}) > 1
    gradient = BatchGradient(setup.model.train(), Cluster(), False, 0, FlopMeter())
    found = []
    for micro in (8, 2):
        setup.model.zero_grad()
        share = Share(loader, 0, Cluster(), micro)
        taken = gradient(0, Pieces(share, 0), setup.objectives, {"tokens": 1.0})  # type: ignore[arg-type]
        share.close()
        found.append((taken.losses["tokens"], setup.model.parts["text"].embedding.weight.grad))  # type: ignore[union-attr]
    torch.testing.assert_close(*(loss for loss, _ in found))
    torch.testing.assert_close(*(grad for _, grad in found), atol=1e-6, rtol=1e-4)


def test_a_field_within_a_field_has_its_own_length() -> None:
    def texts(length: int) -> Texts:
        return Texts(torch.zeros(2, length, dtype=torch.long), torch.ones(2, length, dtype=torch.bool))

    batch = Batch({"text": texts(5), "label": Labels(torch.zeros(2, dtype=torch.long), texts(7))}, 2)
    names = ("text.tokens", "ema:text.tokens", "label.classes.tokens", "image.tokens")
    assert [batch_length(batch, name) for name in names] == [5, 5, 7, 0]


def test_a_teacher_sees_the_students_fields_and_views() -> None:
    setup = made("teachers.ema={decay: 0.5}")
    batch = training_loader(setup, setup.recipe.stages[0], setup.source).batch(0)
    p = setup.model.eval().encode(batch)
    for name in ("image.embedding", "text.embedding"):
        torch.testing.assert_close(p[f"ema:{name}"], p[name])  # the same weights at the start
    view = p.view(text=batch["text"][torch.arange(7, -1, -1)])
    assert torch.equal(view["ema:text.embedding"], view["text.embedding"])
    assert torch.equal(view["ema:image.embedding"], p["ema:image.embedding"])
    setup.model.patch_dropout = 0.5
    p = setup.model.train().encode(batch)
    assert p["image"].keep is not None and p["ema:image.tokens"].tokens.shape[1] < setup.model.part("vision").tokens
    torch.testing.assert_close(p["ema:image.tokens"].tokens, p["image.tokens"].tokens)  # the same patches are left out


def test_an_average_takes_its_prompts_along(base: Path, tmp_path: Path) -> None:
    prompts = [
        "adapters.text={kind: prompt, tokens: 3}",
        "stages.0.train=[adapters.text]",
        f"weights={base}",
        "teachers.ema={decay: 0.5}",
    ]
    setup = made(*prompts, SAME % "ema")
    model, teacher = setup.model, setup.model.teachers["ema"]
    mine, theirs = model.adapters["text"].vectors, teacher.adapters["text"].vectors  # type: ignore[union-attr, index]
    assert torch.equal(mine, theirs) and mine is not theirs  # type: ignore[arg-type]
    start = mine.detach().clone()  # type: ignore[operator]
    stepped(setup)
    torch.testing.assert_close(theirs, 0.5 * start + 0.5 * mine.detach())  # type: ignore[operator]
    assert teacher.parts["text"].prompts[0].vectors is theirs  # type: ignore[union-attr, index]
    run = tmp_path / "run"
    train(load_recipe("clip", [*SMALL, *prompts, SAME % "ema", "budget=16 samples"]), run)
    assert "teachers.ema.adapters.text.vectors" in last(run, "model")


def test_an_average_is_saved_and_resumed_exactly(tmp_path: Path) -> None:
    options = [*SMALL, "teachers.ema={decay: 0.6, of: [vision]}", SAME % "ema", "stages.0.schedule=constant"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(load_recipe("clip", [*options, "budget=32 samples"]), whole)
    train(load_recipe("clip", [*options, "budget=16 samples"]), parts)
    train(load_recipe("clip", [*options, "budget=32 samples"]), parts, resume=True)
    for name in ("model", "objectives", "ema", "optimizer"):
        a, b = last(whole, name), last(parts, name)
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), name
    taught = [k for k in last(whole, "model") if k.startswith("teachers.")]
    assert taught and all(k.startswith("teachers.ema.parts.vision.") for k in taught)
    assert "teachers" not in str(last(whole, "optimizer").keys())
    scores: Any = load(whole, "cpu")  # scoring needs no teacher
    assert not scores.model.teachers and scores.embed_text(["a fox"]).shape == (1, 24)


def test_a_frozen_teacher_is_another_run_and_never_changes(base: Path, tmp_path: Path) -> None:
    options = ["seed=3", f"weights={base}?parts=text", f"teachers.old={{from: {base}}}", SAME % "old"]
    setup = made(*options)
    teacher: Any = setup.model.teachers["old"]
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    theirs: Any = load(base, "cpu")
    for name, value in theirs.model.parts.state_dict().items():
        assert torch.equal(before[f"parts.{name}"], value), name  # its averaged weights, as they are scored
    stepped(setup, 2)
    setup.model.update_teachers(0.0)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    image = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    from batch_fixture import pass_of

    with torch.no_grad():
        found = pass_of(setup.model.eval(), [image], ["a red fox"])["old:image.embedding"]
    np.testing.assert_allclose(found.numpy(), theirs.embed_image([image]), atol=1e-6)
    run = tmp_path / "run"
    train(load_recipe("clip", [*SMALL, *options, "budget=16 samples"]), run)
    assert not [k for k in last(run, "model") if k.startswith("teachers")]  # it lies where it came from
    train(load_recipe("clip", [*SMALL, *options, "budget=24 samples"]), run, resume=True)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["teachers.old={from: nowhere}"], r"teachers\.old\.from: there is no run at 'nowhere'.*run directory.*hf:NAME"),
        (["teachers.ema={of: [visoin]}"], r"teachers\.ema\.of: the recipe has no part 'visoin'.*vision"),
        (["teachers.ema={decay: 1.0}"], r"teachers\.ema\.decay.*less than 1"),
        (["teachers.ema={dekay: 0.9}"], r"teachers\.ema\.dekay"),
        ([SAME % "ema"], r"stages\.0\.objectives\.same needs 'ema:image\.embedding': there is no teacher 'ema'.*`teachers:`"),
        (["teachers.old={from: BASE}", "data.image_size=64", "weights=BASE?parts=text"], r"teachers\.old\.from: .* images of 48 .* of 64; set data\.image_size=48"),
        (["teachers.old={from: BASE}", "data.tokenizer.vocab_size=330"], r"teachers\.old\.from: .*token ids.*weights: .*\?parts=text"),
        (["teachers.old={from: BASE}", "data.tokenizer.max_length=40", "weights=BASE?parts=vision"], r"teachers\.old\.from: .* texts of 32 tokens, .* 40; set data\.tokenizer\.max_length=32"),
    ],
)  # fmt: skip
def test_a_teacher_that_does_not_fit_is_refused_with_the_remedy(base: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(DiptychError, match=message):
        made(*(o.replace("BASE", str(base)) for o in overrides))
    remedies = {
        "data.image_size": "data.image_size=48",
        "vocab_size": f"weights={base}?parts=text",
        "max_length": "data.tokenizer.max_length=32",
    }
    if remedy := next((r for k, r in remedies.items() if any(k in o for o in overrides)), None):  # what it says is enough
        made(*(o.replace("BASE", str(base)) for o in overrides), remedy)


def test_what_is_spent_counts_no_teacher(base: Path, tmp_path: Path) -> None:
    options = ["teachers.ema={decay: 0.6}", f"teachers.old={{from: {base}}}", f"weights={base}", "budget=8 samples"]
    train(load_recipe("clip", [*SMALL, *options]), tmp_path / "run")
    spent, alone = (read_json(path / "spent.json") for path in (tmp_path / "run", base))
    assert spent["parameters"] == spent["trainable_parameters"] == alone["parameters"]


def test_sharding_with_an_averaged_teacher_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match=r"sharding: fsdp cannot keep an averaged teacher.*remove `sharding`, or the teacher"):
        Trainer(load_recipe("clip", [*SMALL, "teachers.ema={decay: 0.6}", "sharding=fsdp"]), tmp_path / "run")
