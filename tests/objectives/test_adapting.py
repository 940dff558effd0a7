"""Classification by class names and distillation from the model as it was, against plain NumPy, with gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from diptych.config.recipe import load_recipe
from diptych.core.errors import DiptychError
from diptych.data.fields.label import LabelField
from diptych.data.text import Tokenizer
from diptych.objectives.adapting import ClassNames, classification_loss, similarity_distillation, vector_distance
from diptych.objectives.adapting.class_names import class_logits
from engine_fixture import Little


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x / x.norm(dim=-1, keepdim=True)


def plain_classification(image: np.ndarray, classes: np.ndarray, index: np.ndarray, scale: float) -> float:
    total = 0.0
    for i in range(len(image)):
        own = classes if classes.ndim == 2 else classes[i]
        logits = [scale * float(image[i] @ own[c]) for c in range(len(own))]
        total += math.log(sum(math.exp(x) for x in logits)) - logits[index[i]]
    return total / len(image)


def plain_distillation(image: np.ndarray, text: np.ndarray, image_was: np.ndarray, text_was: np.ndarray, scale: float) -> float:
    def rows(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        e = np.exp(scale * a @ b.T)
        return e / e.sum(1, keepdims=True)

    total = 0.0
    for (a, b), (c, d) in (((image, text), (image_was, text_was)), ((text, image), (text_was, image_was))):
        p, q = rows(a, b), rows(c, d)
        total += sum(float(q[i, j] * math.log(q[i, j] / p[i, j])) for i in range(len(p)) for j in range(len(p))) / len(p)
    return total / 2


def plain_distance(x: np.ndarray, was: np.ndarray) -> float:
    return sum(1 - float(a @ b) for a, b in zip(x, was, strict=True)) / len(x)


@pytest.mark.parametrize("own", [False, True], ids=["shared", "of-each-image"])
def test_classification_is_its_formula_and_its_gradient_the_true_one(own: bool) -> None:
    image, classes, index = unit(6, 8), unit(6, 4, 8, seed=1) if own else unit(4, 8, seed=1), torch.tensor([0, 3, 1, 1, 2, 0])
    want = plain_classification(image.numpy(), classes.numpy(), index.numpy(), 12.5)
    assert classification_loss(image, classes, index, 12.5).item() == pytest.approx(want, rel=1e-6)
    assert class_logits(image, classes, 1.0).shape == (6, 4)
    for which in (0, 1):
        given = [image.float().clone(), classes.float().clone()]
        given[which].requires_grad_()
        classification_loss(*given, index, 12.5).backward()
        values = [image.numpy(), classes.numpy()]
        at = tuple(0 for _ in values[which].shape)
        moved = [[v.copy() for v in values] for _ in range(2)]
        moved[0][which][at] += 1e-6
        moved[1][which][at] -= 1e-6
        up, down = (plain_classification(*pair, index.numpy(), 12.5) for pair in moved)
        assert given[which].grad is not None
        assert given[which].grad[at].item() == pytest.approx((up - down) / 2e-6, abs=1e-4)


def test_distillation_is_its_formula_and_its_gradient_the_true_one() -> None:
    x = [unit(5, 8, seed=i) for i in range(4)]
    want = plain_distillation(*(v.numpy() for v in x), 20.0)  # type: ignore[arg-type]
    assert want > 0.1
    assert similarity_distillation(*x, 20.0).item() == pytest.approx(want, rel=1e-9)
    assert similarity_distillation(x[0], x[1], x[0], x[1], 20.0).item() == pytest.approx(0, abs=1e-12)
    rows = [similarity_distillation(*x, 20.0, slice(a, b)).item() * (b - a) for a, b in ((0, 2), (2, 5))]
    assert sum(rows) / 5 == pytest.approx(want, rel=1e-9)  # in the shares of two processes
    assert vector_distance(x[0], x[2]).item() == pytest.approx(plain_distance(x[0].numpy(), x[2].numpy()), rel=1e-9)
    for p in x[:2]:
        p.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: similarity_distillation(a, b, x[2], x[3], 20.0), x[:2])
    assert torch.autograd.gradcheck(lambda a: vector_distance(a, x[2]), x[:1])


def test_the_scale_is_kept_or_learned() -> None:
    model: Any = None
    kept, learned = ClassNames(model, temperature=0.05), ClassNames(model, temperature=0.05, learn_scale=True, bias=True)
    assert kept.scale.item() == pytest.approx(20) and learned.scale.item() == pytest.approx(20)
    assert not list(kept.parameters()) and {n for n, _ in learned.named_parameters()} == {"logit_scale"}
    assert set(kept.state_dict()) == {"logit_scale"} and set(learned.state_dict()) == {"logit_scale", "logit_bias"}
    with torch.no_grad():
        learned.logit_scale.fill_(9.0)
    learned.after_step(lambda *values: list(values))
    assert learned.scale.item() == pytest.approx(100, rel=1e-5)


def test_class_names_are_read_in_their_template() -> None:
    tokenizer = Tokenizer.train(["a photo of an owl", "a picture of a red fox"], 320, 16)
    field = LabelField("label", tokenizer, ["owl", "red_fox"], template="a photo of a {}")
    want = tokenizer.encode_batch(["a photo of an owl", "a photo of a red fox"])
    assert field.texts.ids.tolist() == want[0].tolist()
    with pytest.raises(DiptychError, match=r"data\.fields\.label\.template: 'owl' has no \{\}"):
        LabelField("label", tokenizer, ["owl"], template="owl")


OF = {
    "similarities": "stages.0.objectives={info_nce: 1, distillation: {weight: 2, temperature: 0.1}}",
    "vectors": "stages.0.objectives={info_nce: 1, distillation: {weight: 2, of: vectors}}",
}


@pytest.mark.parametrize("of", list(OF))
def test_a_run_begins_at_its_teacher_and_is_drawn_back_to_it(of: str) -> None:
    little = Little("clip", "teachers={base: {from: start}}", OF[of], batch_size=8)
    little.model.update_teachers(decay=0.0)  # as when a run begins
    taken = little.step(None)
    assert float(taken.losses["distillation"]) == pytest.approx(0, abs=1e-5)
    was = {n: p.clone() for n, p in little.model.teachers.state_dict().items()}
    torch.manual_seed(3)
    with torch.no_grad():
        for p in little.model.parts.parameters():
            p += 0.05 * torch.randn_like(p)
    little.model.update_teachers()  # after a step: it does not follow
    assert all(torch.equal(v, was[n]) for n, v in little.model.teachers.state_dict().items())
    loss = float(little.step(None).losses["distillation"])
    assert loss > 1e-3
    batch = little.loader.batch(0)
    with torch.no_grad():
        p = little.model.encode(batch)
        x = [p[f"{who}{side}.embedding"].double().numpy() for who in ("", "base:") for side in ("image", "text")]
    if of == "similarities":
        want = plain_distillation(*x, 10.0)
    else:
        want = (plain_distance(x[0], x[2]) + plain_distance(x[1], x[3])) / 2
    assert loss == pytest.approx(want, rel=1e-3)
    whole, pieces = little.gradients(None), little.gradients(4)
    assert all(torch.allclose(whole[n], pieces[n], atol=1e-5) for n in whole)  # in micro-batches, the same gradient


def test_a_teacher_of_the_start_is_no_path(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "start").mkdir()
    recipe = load_recipe("clip", ["teachers={base: {from: start}}"])
    assert recipe.anchored().teachers["base"].from_ == "start"
