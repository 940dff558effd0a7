"""ConSE: the list of classes, the vectors against a plain reference, the model by its name, and the space that begins as it."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cli_fixture
import diptych as dp
from cli_fixture import Cli, make_photos
from diptych.config.recipe import load_recipe
from diptych.config.untrained import UNTRAINED
from diptych.core.batch import Tokens
from diptych.core.errors import DiptychError
from diptych.curation.engine.apply import apply, rows_of
from diptych.curation.operators.images.text_spotting import MaskedScore
from diptych.curation.operators.pairs.similarity import ClipScore
from diptych.data.image import resize
from diptych.data.text import Tokenizer
from diptych.inference.foreign.conse import Conse
from diptych.inference.run import TrainedModel
from diptych.models.build import SIZES, Build
from diptych.models.pretrained import WEIGHTS
from diptych.models.pretrained.conse import ClassSpace, class_texts, class_vectors, imagenet_classes
from diptych.models.space import ResidualSpace, residual_map
from diptych.models.vlm import build_model
from diptych.objectives import build_objectives

cli = cli_fixture.cli
TEXTS = ["a man in a uniform", "a dog on the grass", "two boats", ""]


def needs(*names: str) -> pytest.MarkDecorator:
    there = all(importlib.util.find_spec(module) for name in names for module in WEIGHTS[name].imports)
    return pytest.mark.skipif(not there, reason=f"{' and '.join(names)} must be installed: {WEIGHTS['minilm'].remedy}")


weights = needs("efficientnet-lite0", "minilm")


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def cached(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One cache for this file, so that the 1,000 class vectors are computed once."""
    monkeypatch.setenv("DIPTYCH_CACHE", str(shared_cache))
    monkeypatch.delenv("DIPTYCH_CACHE_SIZE", raising=False)
    return shared_cache


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def by_hand(logits: np.ndarray, vectors: np.ndarray, classes: int, temperature: float) -> np.ndarray:
    """The paper's convex combination in float64, image by image and class by class, and the centre."""
    vectors, out = vectors.astype(np.float64), []
    for row in logits.astype(np.float64):
        best = sorted(range(len(row)), key=lambda c: -row[c])[:classes]
        p = [np.exp((row[c] - row[best[0]]) / temperature) for c in best]
        mean = sum(p_c * vectors[c] for p_c, c in zip(p, best, strict=True)) / sum(p)
        out.append(mean - vectors.mean(0))
    return unit(np.stack(out))


def pictures(n: int = 2) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (300 + 20 * i, 280, 3), dtype=np.uint8) for i in range(n)]


# --- the classes ---


def test_classes_are_in_the_order_of_the_synsets() -> None:
    """ImageNet's networks number the classes by the sorted names of their synsets."""
    classes = imagenet_classes()
    synsets = [c.synset for c in classes]
    assert len(classes) == len(set(synsets)) == 1000 and synsets == sorted(synsets)
    assert all(c.names and all(c.names) and c.kind for c in classes)
    known = {0: "tench", 151: "Chihuahua", 207: "golden retriever", 281: "tabby", 340: "zebra", 954: "banana", 999: "toilet tissue"}
    assert {i: classes[i].names[0] for i in known} == known
    assert classes[134].kind != classes[517].kind, "crane: the bird and the machine"


def photographs() -> dict[str, str]:
    """Photographs that come with scikit-learn and matplotlib, and a class that is seen in them."""
    found = {}
    for package, name, seen in (
        ("sklearn", "datasets/images/china.jpg", "palace"),
        ("sklearn", "datasets/images/flower.jpg", "daisy"),
        ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg", "military uniform"),
    ):
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            if (Path(folder) / name).is_file():
                found[str(Path(folder) / name)] = seen
    return found


@weights
@pytest.mark.skipif(not photographs(), reason="no photographs: install scikit-learn or matplotlib")
def test_the_network_names_photographs_by_these_classes(cached: Path) -> None:
    """A list that is shifted, or sorted in another way, gives other names."""
    model = Conse(device="cpu")
    seen = photographs()
    names = [imagenet_classes()[i].names[0] for i in model.logits(list(seen)).argmax(1)]
    assert names == list(seen.values())
    scores = model.score(list(seen), [f"a photo of a {name}" for name in seen.values()])
    assert (scores.argmax(1) == np.arange(len(seen))).all()


def test_texts_of_classes() -> None:
    assert class_texts()[207] == "a photo of a golden retriever, dog"
    assert class_texts("{names}")[0] == "tench, Tinca tinca"
    for template, words in (
        ("a {nam}", r"no \{nam\}; did you mean 'name'"),
        ("a {kind}", r"must hold \{name\}"),
        ("a thing", r"must hold"),
        ("a {name", "template 'a {name'"),
        ("{0}", "there is no {0}"),
    ):
        with pytest.raises(DiptychError, match=words):
            class_texts(template)


class Counting:
    """An encoder of texts that counts them."""

    def __init__(self, seed: int = 0):
        self.read, self.seed = 0, seed

    def parameters(self) -> Any:
        return iter(())

    def embed(self, texts: Sequence[str], device: Any = "cpu") -> torch.Tensor:
        self.read += len(texts)
        rows = [np.random.default_rng([self.seed, *t.encode()]).standard_normal(6) for t in texts]
        return torch.tensor(np.stack(rows), dtype=torch.float32)


def test_class_vectors_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    first, again, other = Counting(), Counting(), Counting(seed=1)
    vectors = class_vectors(first, "{name}")
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(1000))
    assert first.read >= 1000 and torch.equal(class_vectors(again, "{name}"), vectors) and again.read < 10
    assert not torch.allclose(class_vectors(other, "{name}"), vectors) and other.read >= 1000, "those of another encoder"
    (place,) = (tmp_path / "cache").rglob("*.npy")
    for damaged in (b"", b"no array", place.read_bytes()[:500]):
        place.write_bytes(damaged)
        assert torch.equal(class_vectors(Counting(), "{name}"), vectors)
    monkeypatch.setenv("DIPTYCH_CACHE_SIZE", "0")
    place.unlink()
    assert torch.equal(class_vectors(Counting(), "{name}"), vectors) and not place.exists()
    monkeypatch.delenv("DIPTYCH_CACHE_SIZE")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "file"))  # no directory: nothing can be kept
    assert torch.equal(class_vectors(Counting(), "{name}"), vectors)


# --- the vectors ---


@pytest.mark.parametrize(("classes", "temperature"), [(1, 1.0), (3, 0.5), (7, 2.0), (20, 3.0)])
def test_vectors_equal_a_plain_reference(classes: int, temperature: float) -> None:
    rng = np.random.default_rng(1)
    vectors, logits = unit(rng.standard_normal((20, 5))), rng.standard_normal((6, 20)) * 4
    sentences = rng.standard_normal((4, 5)) * 3
    space = ClassSpace(torch.tensor(vectors, dtype=torch.float32), classes, temperature)
    got = space.image(torch.tensor(logits, dtype=torch.float32)).numpy()
    np.testing.assert_allclose(got, by_hand(logits, vectors, classes, temperature), atol=1e-5)
    text = space.text(torch.tensor(sentences, dtype=torch.float32)).numpy()
    np.testing.assert_allclose(text, unit(unit(sentences) - vectors.mean(0)), atol=1e-5)


def test_the_centre_lies_between_the_classes() -> None:
    """Without it all vectors would share the direction in which all texts lie."""
    rng = np.random.default_rng(2)
    vectors = unit(rng.standard_normal((30, 8)) + 5)
    space = ClassSpace(torch.tensor(vectors, dtype=torch.float32), 1, 1.0)
    each = space.image(torch.eye(30) * 9)
    assert each.mean(0).norm() < 0.2 < 0.9 < vectors.mean(0) @ vectors.mean(0)
    torch.testing.assert_close(space.text(torch.tensor(vectors, dtype=torch.float32) * 7), each, msg="a class's text is its image")


def test_the_number_of_classes_is_checked() -> None:
    for n in (0, 4):
        with pytest.raises(DiptychError, match=f"classes: expected 1 to 3, got {n}"):
            ClassSpace(torch.eye(3), n)


@weights
def test_the_model_equals_the_reference(cached: Path) -> None:
    model = Conse(classes=10, temperature=1.5, resolution=64, device="cpu")
    vectors = model.space.vectors.numpy().astype(np.float64)
    some = [0, 207, 999]
    np.testing.assert_allclose(vectors[some], unit(model.encoder.embed([class_texts()[i] for i in some]).numpy()), atol=1e-5)
    images = pictures()
    logits = model.logits(images)
    np.testing.assert_allclose(model.embed_image(images), by_hand(logits, vectors, 10, 1.5), atol=1e-5)
    sentences = model.encoder.embed(TEXTS).numpy().astype(np.float64)
    np.testing.assert_allclose(model.embed_text(TEXTS), unit(unit(sentences) - vectors.mean(0)), atol=1e-5)
    pixels = np.stack([resize(image, 64) for image in images]).transpose(0, 3, 1, 2) / 255
    plain = model.net.logits(torch.tensor((pixels - 0.498) / 0.502, dtype=torch.float32))
    np.testing.assert_allclose(logits, plain.detach().numpy(), atol=1e-4)
    assert model.embed_image([]).shape == (0, 384) and model.embed_text([]).shape == (0, 384)
    assert model.logits([]).shape == (0, 1000)


# --- by its name ---


@weights
def test_it_opens_by_its_name_with_options(cached: Path) -> None:
    model = dp.load("conse", "cpu")
    other = dp.load("conse?classes=10&temperature=2.5&resolution=64", "cpu")
    assert model.name == "conse" and other.name == "conse?classes=10&temperature=2.5&resolution=64"
    assert model.capabilities == {"embed_image", "embed_text", "score", "locate"}
    assert model.key != other.key and model.key == dp.load("conse?classes=50", "cpu").key  # type: ignore[attr-defined]
    vectors = model.embed_image(pictures())
    assert vectors.dtype == np.float32 and vectors.shape == (2, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(model.score(pictures(), TEXTS), vectors @ model.embed_text(TEXTS).T, atol=1e-5)
    assert model.score(pictures(), TEXTS, np.array([[1, 2]])).shape == (1,)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("conse?clases=3", "unknown option 'clases'; did you mean 'classes'"),
        ("conse?classes=0", "conse.classes=0.classes: expected int, got '0'.*greater than or equal to 1"),
        ("conse?classes=1001", "less than or equal to 1000"),
        ("conse?temperature=-1", "greater than 0"),
        ("conse?variant=lite9", "'lite0', 'lite1' or 'lite2'"),
        ("conse?template=a+thing", "must hold"),
        ("consee", "no run at 'consee'; did you mean 'conse'"),
    ],
)
def test_wrong_addresses_are_refused(address: str, words: str) -> None:
    with pytest.raises(DiptychError, match=words):
        dp.load(address)


@pytest.mark.parametrize("name", ["conse", "conse?classes=3"])
def test_it_is_not_trained(name: str, tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match="nothing to train: `diptych evaluate conse --data ADDRESS`.*train lit@conse") as refused:
        dp.train(name, out=tmp_path / "run")
    assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()


def test_models_without_training_name_what_is_there() -> None:
    for name in UNTRAINED.names():
        model = UNTRAINED.load(name)
        module, _, attribute = model.model.partition(":")
        assert hasattr(importlib.import_module(module), attribute) and model.name == name
        if model.start:
            assert load_recipe(model.start).score == model.score


def test_it_is_listed(cli: Cli) -> None:
    shown = cli("recipes")
    assert shown.code == 0 and "conse" in shown.out.split() and "Norouzi et al. 2014" in shown.out


@weights
def test_it_is_evaluated_on_a_folder(cli: Cli, tmp_path: Path, cached: Path) -> None:
    make_photos(tmp_path / "photos", 12)
    address = f"folder:{tmp_path / 'photos'}"
    done = cli(
        "evaluate",
        "conse?resolution=64",
        "--data",
        address,
        "--split",
        "all",
        "--tasks",
        "retrieval",
        "--out",
        str(tmp_path / "out"),
    )
    assert done.code == 0, done.err
    assert (tmp_path / "out" / "summary.json").is_file() and "conse?resolution=64 on" in done.out


@weights
def test_curation_scores_by_it_if_no_model_is_named(cached: Path) -> None:
    batch = rows_of({"pixels": pictures(), "text": TEXTS[:2]})
    scored = apply(ClipScore(), batch)["clip_score"].to_pylist()
    expected = np.diag(Conse(device="cpu").score(pictures(), TEXTS[:2]))
    np.testing.assert_allclose(scored, expected, atol=1e-5)
    assert ClipScore().model == MaskedScore().model == "conse"


# --- what learns from there ---


def small(*overrides: str) -> Any:
    return load_recipe("lit@conse", ["parts.vision.resolution=64", "data.image_size=64", *overrides])


def run_of(recipe: Any) -> TrainedModel:
    """The model of a recipe before its first step."""
    torch.manual_seed(0)
    size = recipe.data.image_size
    model = build_model(recipe, Tokenizer.train(TEXTS[:3], 400, 32), size)
    return TrainedModel("fresh", recipe, model, build_objectives(recipe, model), torch.device("cpu"))


@weights
def test_a_run_begins_as_conse(cached: Path) -> None:
    conse, fresh = Conse(resolution=64, device="cpu"), run_of(small())
    np.testing.assert_allclose(fresh.embed_image(pictures()), conse.embed_image(pictures()), atol=1e-5)
    np.testing.assert_allclose(fresh.embed_text(TEXTS), conse.embed_text(TEXTS), atol=1e-5)
    whole = load_recipe("lit@conse")
    assert (whole.data.image_size, whole.parts["vision"].options["resolution"]) == (256, 256), "as dp.load('conse') sees them"
    np.testing.assert_allclose(run_of(whole).embed_image(pictures(1)), Conse(device="cpu").embed_image(pictures(1)), atol=1e-5)


@weights
def test_a_run_learns_and_comes_back(cached: Path, tmp_path: Path) -> None:
    make_photos(tmp_path / "photos", 12)
    settings = {
        "parts.vision.resolution": 64,
        "data.image_size": 64,
        "stages.0.batch_size": 4,
        "stages.0.warmup": 0,
        "stages.0.ema": 0,
    }
    done = dp.train("lit@conse", data=f"folder:{tmp_path / 'photos'}", budget="6 steps", out=tmp_path / "run", set=settings)
    trained, conse = dp.load(done.path, "cpu"), Conse(resolution=64, device="cpu")
    assert isinstance(trained, TrainedModel)
    moved = np.abs(trained.embed_image(pictures()) - conse.embed_image(pictures())).max()
    assert 1e-4 < moved < 1, "the maps have learned, and the beginning is still there"
    space: Any = trained.model.parts["space"]
    saved = trained.model.saved_state()
    assert torch.equal(saved["parts.space.base.vectors"], space.base.vectors)
    assert not [name for name in saved if name.startswith(("parts.vision", "parts.text"))], "the packages have these"
    learned = {name for name, p in trained.model.named_parameters() if name.startswith("parts.space")}
    assert learned == {f"parts.space.{side}.1.{p}" for side in ("image", "text") for p in ("weight", "bias")}
    space.base.vectors.zero_()
    assert not np.allclose(trained.embed_image(pictures()), dp.load(done.path, "cpu").embed_image(pictures()))


def fake(width: int = 5, text_width: int = 6) -> Build:
    """Parts that have what the space needs, without weights."""

    class Vision(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width = width

        def class_logits(self, tokens: Tokens) -> torch.Tensor:
            return tokens.pooled[:, :1]

    class Text(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width, self.encoder = text_width, Counting()

    return Build(SIZES["tiny"], 64, None, parts={"vision": Vision(), "text": Text()}, where="parts.space")


def tokens(pooled: np.ndarray) -> Tokens:
    x = torch.tensor(pooled, dtype=torch.float32)
    return Tokens(x[:, None], x)


@pytest.mark.parametrize("hidden", [None, 4])
def test_what_is_learned_is_added(cached: Path, hidden: int | None) -> None:
    """Values and gradients of the last layers against NumPy in float64, by central differences."""
    torch.manual_seed(0)
    rng = np.random.default_rng(3)
    space = ResidualSpace(fake(), classes=20, hidden=hidden).eval()
    logits, pooled, sentences = rng.standard_normal((3, 1000)), rng.standard_normal((3, 5)), rng.standard_normal((3, 6))
    with torch.no_grad():
        for side in (space.image, space.text):
            side[-1].weight.copy_(torch.tensor(rng.standard_normal(side[-1].weight.shape) * 0.3))
            side[-1].bias.copy_(torch.tensor(rng.standard_normal(6) * 0.3))
    own = {name: p.detach().double().numpy() for name, p in space.named_parameters()}
    vectors = space.base.vectors.double().numpy()

    def map_of(side: str, x: np.ndarray, values: dict[str, np.ndarray]) -> np.ndarray:
        if hidden:
            x = x @ values[f"{side}.1.weight"].T + values[f"{side}.1.bias"]
            x = x * np.vectorize(lambda v: 0.5 * (1 + float(torch.erf(torch.tensor(v / 2**0.5, dtype=torch.float64)))))(x)
        last = 3 if hidden else 1
        return np.asarray(x @ values[f"{side}.{last}.weight"].T + values[f"{side}.{last}.bias"])

    def both(values: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        image = unit(by_hand(logits, vectors, 20, 2.0) + map_of("image", pooled, values))
        return image, unit(unit(unit(sentences) - vectors.mean(0)) + map_of("text", sentences, values))

    image = space.image_embedding(torch.tensor(logits, dtype=torch.float32), tokens(pooled))
    text = space.text_embedding(tokens(sentences))
    for got, expected in zip((image, text), both(own), strict=True):
        np.testing.assert_allclose(got.detach().numpy(), expected, atol=1e-5)

    pull = rng.standard_normal((3, 3))
    (torch.tensor(pull, dtype=torch.float32) * (image @ text.T)).sum().backward()

    def loss(values: dict[str, np.ndarray]) -> float:
        a, b = both(values)
        return float((pull * (a @ b.T)).sum())

    for name, p in space.named_parameters():
        assert p.grad is not None
        for at in [(0,) * p.ndim, tuple(n - 1 for n in p.shape)]:
            step = np.zeros(p.shape)
            step[at] = 1e-5
            slope = (loss({**own, name: own[name] + step}) - loss({**own, name: own[name] - step})) / 2e-5
            np.testing.assert_allclose(float(p.grad[at]), slope, atol=1e-4, err_msg=f"{name} {at}")


def test_maps_are_zero_at_first_and_learn() -> None:
    for hidden in (None, 7):
        made = residual_map(5, 3, hidden, dropout=0.5)
        x = torch.randn(4, 5)
        out = made(x)
        assert torch.equal(out, torch.zeros(4, 3))
        out.sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in made[-1].parameters()), "the last layer begins to learn"
    torch.nn.init.ones_(made[-1].weight)
    assert not torch.equal(made(x), made(x)) and torch.equal(made.eval()(x), made(x)), "dropout in training only"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["parts.space={kind: residual, classes: 0}"], "parts.space.classes: expected int, got 0"),
        (["parts.space={kind: residual, clases: 5}"], "did you mean 'classes'"),
        (["parts.space={kind: residual, template: a cat}"], "must hold"),
        (
            ["parts.vision={kind: vit}"],
            "parts.space: needs a vision tower that knows ImageNet's classes: parts.vision.kind: efficientnet",
        ),
        (["parts.text={kind: transformer}"], "parts.space: needs a sentence encoder: parts.text.kind: minilm"),
    ],
)
@weights
def test_wrong_parts_are_refused(cached: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(DiptychError, match=words):
        run_of(small(*overrides))
