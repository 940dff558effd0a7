"""CoCoOp and MMRL, adapter and objective: against towers and losses written out in float64; trained, saved, scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.config.recipe import load_recipe
from diptych.core.batch import Batch, Images, Labels
from diptych.core.errors import DiptychError
from diptych.core.files import read_json
from diptych.data.fields.text import tokenized
from diptych.inference.load import load
from diptych.models import space
from diptych.models.adapters import mmrl
from diptych.objectives.prompted import cocoop
from diptych.training.loop import train
from diptych.training.start.setup import set_up
from plain_fixture import f64, linear
from tower_fixture import CLIP, blocks, patches_of, places_of, softmax, unit, words_of

NAMES = ["red fox", "two green keys", "cat", "a big yellow house"]
INDEX = [2, 0, 3]
FROZEN = [
    "parts.vision.frozen=true",
    "parts.text.frozen=true",
    "parts.space={kind: linear, frozen: true}",
    "stages.0.train=[adapters.text]",
]
COCOOP = ["adapters.text={kind: cocoop, reduction: 4}", "stages.0.objectives={cocoop: {at_once: 8}}", "score=cocoop"]
MMRL = ["stages.0.objectives={mmrl: {alpha: 0.6, frozen_weight: 0.4, temperature: 0.1}}", "score=mmrl"]
PLAIN, PLUS = "{kind: mmrl, tokens: 2, dim: 6}", "{kind: mmrl++, tokens: 2, dim: 6, rank: 2, projection_rank: 3, beta: 0.8}"


@pytest.fixture(autouse=True)
def precise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings are float32, too coarse for differences; here they keep the model's precision."""
    for module in (space, mmrl, cocoop):
        monkeypatch.setattr(module, "unit", lambda x: torch.nn.functional.normalize(x, dim=-1))


def made(*overrides: str) -> Any:
    """A setup in float64, with adapters as if they had learned."""
    torch.manual_seed(0)
    setup = set_up(load_recipe("clip", [*CLIP, *FROZEN, *overrides]))
    setup.model.double().eval()
    setup.objectives.double().eval()
    torch.manual_seed(5)
    with torch.no_grad():
        for p in setup.model.adapters["text"].parameters():
            p.copy_(torch.randn_like(p) * 0.4)
    setup.model.train_only(["adapters.text"])
    return setup


def pixels(n: int = 3) -> torch.Tensor:
    return torch.rand(n, 3, 48, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def pass_over(model: Any, n: int = 3, texts: Any = ()) -> Any:
    fields: dict[str, Any] = {
        "image": Images(pixels(n)),
        "label": Labels(torch.tensor(INDEX[:n]), tokenized(model.tokenizer, NAMES)),
    }
    if texts:
        fields["text"] = tokenized(model.tokenizer, list(texts))
    return model.encode(Batch(fields, n))


def image_of(model: Any, k: int) -> np.ndarray:
    """The plain image embedding [E]."""
    x = blocks(model.parts["vision"], patches_of(model, pixels()[k].numpy()))
    return unit(f64(model.parts["space"].image.weight) @ x[0])


def text_of(model: Any, text: str, context: np.ndarray | None = None) -> np.ndarray:
    """The embedding [E] of a text with context vectors behind [BOS]."""
    words = words_of(model, text)
    x = words if context is None else np.concatenate([words[:1], context, words[1:]])
    x = blocks(model.parts["text"], x + places_of(model)[: len(x)])
    return unit(f64(model.parts["space"].text.weight) @ x[-1])


def cross_entropy(logits: np.ndarray, index: int) -> float:
    return -float(np.log(softmax(logits)[index]))


def check_gradients(setup: Any, names: set[str], n: int = 3) -> None:
    """Exactly these parameters of the adapter learn, by their gradients at two places each."""
    objective: Any = next(iter(setup.objectives.values()))
    adapter = setup.model.adapters["text"]

    def loss() -> torch.Tensor:
        result: torch.Tensor = objective(pass_over(setup.model, n))
        return result

    loss().backward()
    learned = {name for name, p in setup.model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert learned == {f"adapters.text.{name}" for name in names}
    for name in names:
        p = adapter.get_parameter(name)
        flat, grad = p.data.view(-1), p.grad.view(-1)
        for at in (0, len(flat) - 1):
            values = []
            for step in (1e-5, -1e-5):
                flat[at] += step
                with torch.no_grad():
                    values.append(float(loss()))
                flat[at] -= step
            assert float(grad[at]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-7), name


# --- CoCoOp ---


def contexts(adapter: Any, image: np.ndarray) -> np.ndarray:
    """v_m + h(x), [n, D]."""
    inner = np.maximum(linear(adapter.meta[0], image), 0)
    return f64(adapter.vectors) + linear(adapter.meta[2], inner)


def test_every_image_has_class_texts_of_its_own() -> None:
    setup = made(*COCOOP)
    model, objective = setup.model, setup.objectives["cocoop"]
    adapter = model.adapters["text"]
    assert adapter.meta[0].weight.shape == (2, 10) and adapter.vectors.shape[1:] == (12,)
    want = []
    for k in range(3):
        x = image_of(model, k)
        classes = np.stack([text_of(model, name, contexts(adapter, x)) for name in NAMES])
        want.append(cross_entropy(classes @ x / 0.07, INDEX[k]))
    p = pass_over(model)
    assert objective(p).item() == pytest.approx(float(np.mean(want)), abs=1e-9)  # in pieces of two images
    objective.at_once = 1000
    assert objective(pass_over(model)).item() == pytest.approx(float(np.mean(want)), abs=1e-9)


def test_pairs_are_scored_by_the_text_as_the_image_has_it() -> None:
    setup = made(*COCOOP)
    model, objective = setup.model, setup.objectives["cocoop"]
    texts = ["a red fox", "cat", "two green keys to the left of a house"]
    p = pass_over(model, 3, texts)
    images, of = torch.tensor([0, 2, 1, 1]), torch.tensor([2, 0, 1, 0])
    with torch.no_grad():
        found = objective.pair_scores(p, images, of)
    for k, (i, j) in enumerate(zip(images.tolist(), of.tolist(), strict=True)):
        x = image_of(model, i)
        assert float(found[k]) == pytest.approx(float(text_of(model, texts[j], contexts(model.adapters["text"], x)) @ x), abs=1e-9)
    with torch.no_grad():  # without an image: the context alone
        alone = p["text.embedding"]
    np.testing.assert_allclose(alone[1], text_of(model, "cat", f64(model.adapters["text"].vectors)), atol=1e-9)


@pytest.mark.parametrize("at_once", [4, 1000])
def test_gradients_of_cocoop(at_once: int) -> None:
    setup = made(*COCOOP, f"stages.0.objectives.cocoop.at_once={at_once}")
    check_gradients(setup, {"vectors", "meta.0.weight", "meta.0.bias", "meta.2.weight", "meta.2.bias"})


def test_an_objective_without_its_adapter() -> None:
    for name in ("cocoop", "mmrl"):
        with pytest.raises(DiptychError, match=rf"objective {name} needs an adapter .*adapters\.text={{kind: {name}}}"):
            made(f"stages.0.objectives={{{name}: 1}}", "adapters.text={kind: prompt}")
    with pytest.raises(DiptychError, match=r"score: cocoop needs the objective cocoop"):
        made("score=cocoop", "adapters.text={kind: cocoop}")


# --- MMRL ---


def representations(model: Any, plus: bool, first: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class features and representations of the images [3, E], and the classes [C, E], by tokens before the blocks from ``first``
    on.
    """
    adapter, R = model.adapters["text"], f64(model.adapters["text"].vectors)

    def tokens(maps: Any, block: int) -> np.ndarray:
        k = block - first
        if not plus:
            return linear(maps[k], R)
        W = f64(maps.weight) + f64(maps.A)[k] @ f64(maps.B)[k]
        return R @ W.T + f64(maps.bias)[k]

    def edit(maps: Any) -> Any:
        def put(i: int, x: np.ndarray) -> np.ndarray:
            if i < first:
                return x
            new = tokens(maps, i)
            if i == first:
                return np.concatenate([x[:1], new, x[1:]])
            return np.concatenate([x[:1], 0.8 * new + 0.2 * x[1:3] if plus else new, x[3:]])

        return put

    own = f64(model.parts["space"].image.weight)
    projection = own + (f64(adapter.A) @ f64(adapter.B)).T if plus else f64(adapter.projection)
    images, reps, classes = [], [], []
    for k in range(3):
        x = blocks(model.parts["vision"], patches_of(model, pixels()[k].numpy()), edit(adapter.to_vision))
        images.append(unit(own @ x[0]))
        reps.append(unit(projection @ x[1:3].mean(0)))
    for name in NAMES:
        words = words_of(model, name)
        x = blocks(model.parts["text"], words + places_of(model)[: len(words)], edit(adapter.to_text))
        classes.append(unit(f64(model.parts["space"].text.weight) @ x[-1]))
    return np.stack(images), np.stack(reps), np.stack(classes)


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("first", [1, 2])
def test_two_features_of_an_image(plus: bool, first: int) -> None:
    adapter = (PLUS if plus else PLAIN).replace("}", f", first: {first}}}")
    setup = made(f"adapters.text={adapter}", *MMRL)
    model, objective = setup.model, setup.objectives["mmrl"]
    assert setup.tokenizer.max_length == 32, "the tokens take no positions"
    x, r, w = representations(model, plus, first - 1)
    p = pass_over(model)
    with torch.no_grad():
        np.testing.assert_allclose(p["image.embedding"], x, atol=1e-9)
        np.testing.assert_allclose(p["image.representation"], r, atol=1e-9)
        np.testing.assert_allclose(p["label.classes.embedding"], w, atol=1e-9)
    x0, w0 = np.stack([image_of(model, k) for k in range(3)]), np.stack([text_of(model, name) for name in NAMES])
    by_class = np.mean([cross_entropy(w @ x[k] * 10, INDEX[k]) for k in range(3)])
    by_rep = np.mean([cross_entropy(w @ r[k] * 10, INDEX[k]) for k in range(3)])
    drift = np.mean(1 - (x * x0).sum(1)) + np.mean(1 - (w * w0).sum(1))
    assert objective(p).item() == pytest.approx(0.6 * by_class + 0.4 * by_rep + 0.4 * drift, abs=1e-6)
    assert drift > 5e-4, "the adapter changes something"


@pytest.mark.parametrize("plus", [False, True])
def test_gradients_of_mmrl(plus: bool) -> None:
    setup = made(f"adapters.text={PLUS if plus else PLAIN}", *MMRL)
    names = {n for n, _ in setup.model.adapters["text"].named_parameters()}
    assert {"vectors", *(["A", "B", "to_text.A"] if plus else ["projection", "to_text.0.weight"])} <= names
    check_gradients(setup, names, n=2)


@pytest.mark.parametrize("features", ["both", "class", "known"])
def test_which_features_score_a_text(features: str) -> None:
    setup = made(f"adapters.text={PLAIN}", *MMRL, f"stages.0.objectives.mmrl.features={features}")
    model, objective = setup.model, setup.objectives["mmrl"]
    objective(pass_over(model)).backward()  # it has learned these classes
    texts = [NAMES[3], "a green cat", NAMES[0]]
    x, r, _ = representations(model, False)
    p = pass_over(model, 3, texts)
    with torch.no_grad():
        w = p["text.embedding"].numpy()
        every, some = objective.all_scores(p), objective.pair_scores(p, torch.tensor([0, 2]), torch.tensor([1, 2]))
    share = {"both": [0.4] * 3, "class": [0.0] * 3, "known": [0.4, 0.0, 0.4]}[features]
    want = np.array([[(1 - share[j]) * x[i] @ w[j] + share[j] * r[i] @ w[j] for j in range(3)] for i in range(3)])
    np.testing.assert_allclose(every, want, atol=1e-7)
    np.testing.assert_allclose(some, [want[0, 1], want[2, 2]], atol=1e-7)


def test_mmrl_begins_as_in_the_authors_code() -> None:
    torch.manual_seed(0)
    wide = [f"parts.{p}.{k}" for p in ("vision", "text") for k in ("depth=12", "width=64", "heads=2")]
    recipe = load_recipe("clip", [*CLIP, *wide, "embed_dim=48", "adapters.text={kind: mmrl}"])
    model: Any = set_up(recipe).model
    adapter = model.adapters["text"]
    assert adapter.vectors.shape == (5, 512) and len(adapter.to_text) == len(adapter.to_vision) == 7  # blocks 6 to 12
    assert model.parts["vision"].prompts[0].first == model.parts["text"].prompts[0].first == 5
    assert all(torch.equal(layer.weight, adapter.to_text[0].weight) for layer in adapter.to_text)
    assert float(adapter.projection.detach().std()) == pytest.approx(64**-0.5, rel=0.1)
    plus: Any = set_up(load_recipe("clip", [*CLIP, *wide, "embed_dim=48", "adapters.text={kind: mmrl++}"])).model
    own = plus.adapters["text"]
    x = torch.randn(3, 64)
    torch.testing.assert_close(own.projected(x), plus.parts["space"].image(x)), "from the class feature's"
    assert own.to_text.A.shape == (7, 64, 4) and not own.to_text.B.any() and own.A.shape == (64, 64)


def test_it_is_alone_on_its_towers() -> None:
    more = "adapters.words={kind: prompt, part: text, tokens: 2}"
    for order in ([more, f"adapters.text={PLAIN}"], [f"adapters.text={PLAIN}", more]):
        with pytest.raises(DiptychError, match=r"adapters\.text: it must be the only adapter with prompts on both towers"):
            made(*order, *MMRL)
    with pytest.raises(DiptychError, match=r"adapters\.text: first: 3, last: 2, of 3 blocks"):
        made("adapters.text={kind: mmrl, first: 3, last: 2}")


# --- runs ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of three classes."""
    root = tmp_path_factory.mktemp("classes")
    for c, name in enumerate(("cat", "red_fox", "key")):
        (root / name).mkdir()
        for i in range(8):
            pixels = np.random.default_rng(10 * c + i).integers(0, 256, (48, 48, 3), dtype=np.uint8)
            pixels[..., c] = 255
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.mark.parametrize("kind", ["cocoop", "mmrl", "mmrl++"])
def test_a_run_is_trained_saved_loaded_and_scores(kind: str, folder: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    train(load_recipe("clip", [*CLIP, "budget=8 samples", "stages.0.batch_size=8"]), base)
    how = COCOOP if kind == "cocoop" else [f"adapters.text={PLUS if kind == 'mmrl++' else PLAIN}", *MMRL]
    options = [*CLIP, *FROZEN, *how, f"weights={base}", f"data.train=classes:{folder}", "data.image_size=48"]
    train(
        load_recipe("clip", [*options, "budget=24 samples", "stages.0.batch_size=8", "stages.0.lr=0.01", "stages.0.ema=0"]),
        tmp_path / "run",
    )
    model: Any = load(tmp_path / "run", "cpu")
    was: Any = load(base, "cpu")
    spent = read_json(tmp_path / "run" / "spent.json")
    assert spent["trainable_parameters"] == sum(p.numel() for p in model.model.adapters["text"].parameters())
    assert "score" in model.capabilities and "embed_text" not in model.capabilities
    pictures = [np.asarray(Image.open(folder / "cat" / f"{i}.png")) for i in range(2)]
    texts = ["cat", "red fox", "key", "a house"]
    found = model.score(pictures, texts)
    assert found.shape == (2, 4) and np.isfinite(found).all() and not np.allclose(found, was.score(pictures, texts), atol=1e-3)
    np.testing.assert_allclose(found[1, [0, 2]], model.score(pictures, texts, np.array([[1, 0], [1, 2]])), atol=1e-5)
    if kind == "cocoop":  # by the name of the contrastive objective it gets that scale, which does not learn
        named = "stages.0.objectives={info_nce: {kind: cocoop, temperature: 0.5}}"
        objective: Any = set_up(load_recipe("clip", [*options, named])).objectives["info_nce"]
        assert objective.scale.item() == pytest.approx(was.objectives["info_nce"].scale.item()) and objective.scale.item() > 10
        assert not list(objective.parameters())
    else:
        assert model.objectives["mmrl"].known.count_nonzero() == 3
    setup = set_up(load_recipe("clip", [*options, f"weights={tmp_path / 'run'}"]))  # another run may start from it
    now = model.model.adapters["text"].state_dict()
    assert all(torch.equal(v, now[k]) for k, v in setup.model.adapters["text"].state_dict().items())
