"""Ways that train a tower: recipes that fit the model, its scale, texts that belong to their names, merging, export, the run's classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import foreign_fixture
from diptych.api import load
from diptych.choose.towers import TOWER_WAYS, fit, tower_recipe, tower_way_named
from diptych.choose.towers.heads import class_vectors
from diptych.config.recipe import Recipe
from diptych.core.arrays import unit_rows
from diptych.core.errors import DiptychError
from diptych.inference.adapted import AdaptedModel
from diptych.inference.export import export
from diptych.inference.run import TrainedModel
from diptych.training.distributed import Cluster
from diptych.training.flops import FlopMeter
from diptych.training.gradient import BatchGradient, Pieces, Share
from diptych.training.loop import train
from diptych.training.start.setup import Setup, set_up, training_loader
from towers_fixture import FAST, NAMES, folders, pictures, run, stir

TEXTS = ["a red cat", "a photo of a dog", "two star on the left of a blue dog"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"classes:{folders(tmp_path_factory.mktemp('data') / 'classes')}"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """CLIP and SigLIP of transformers, and a run of ours."""
    root = tmp_path_factory.mktemp("models")
    named = {kind: f"hf:{getattr(foreign_fixture, kind)(root / kind)}" for kind in ("clip", "siglip")}
    return {**named, "run": str(run(root / "run"))}


def started(model: str, way: str, data: str, settings: dict[str, Any] | None = None) -> Setup:
    return set_up(tower_recipe(model, tower_way_named(way), f"shots:{data}?shots=2", settings, overrides=FAST))


def theirs(address: str, texts: list[str]) -> tuple[np.ndarray, np.ndarray, float]:
    """What transformers computes: unit vectors of the pictures and texts, and the scale."""
    from transformers import AutoModel, AutoProcessor

    path = address.removeprefix("hf:")
    model, processor = AutoModel.from_pretrained(path).eval(), AutoProcessor.from_pretrained(path)
    shown = [Image.fromarray(x) for x in pictures()]
    padding = "max_length" if "siglip" in path else True
    longest = processor.tokenizer.model_max_length
    inputs = processor(images=shown, text=texts, padding=padding, max_length=longest, truncation=True, return_tensors="pt")
    if "siglip" in path:
        inputs.pop("attention_mask", None)
    with torch.no_grad():
        out = model(**inputs)
    return unit_rows(out.image_embeds.numpy()), unit_rows(out.text_embeds.numpy()), model.logit_scale.exp().item()


def embeddings(model: Any, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Of the pictures and texts, by a model that is being trained."""
    from batch_fixture import pass_of

    model.eval()
    with torch.no_grad():
        p = pass_of(model, pictures(len(texts)), texts)
        return p["image.embedding"].numpy(), p["text.embedding"].numpy()


# --- the recipe ---


@pytest.mark.parametrize("of", ["clip", "siglip", "run"])
@pytest.mark.parametrize("way", ["lora", "full", "coop", "vpt", "cocoop", "maple", "mmrl", "mmrl++", "vpt-deep"])
def test_a_recipe_begins_as_the_model_with_its_scale(models: dict[str, str], data: str, of: str, way: str) -> None:
    setup = started(models[of], way, data)
    assert setup.started and not [name for name in setup.started.fresh if not name.startswith("adapters.")]
    objective: Any = next(iter(setup.objectives.values()))
    if of == "run":
        ours = TrainedModel.load(Path(models["run"]), "cpu")
        image, text, scale = ours.embed_image(pictures()), ours.embed_text(TEXTS), ours.scale
    else:
        image, text, scale = theirs(models[of], TEXTS)
    assert float(objective.scale.detach()) == pytest.approx(scale, rel=1e-5) and abs(scale - 1 / 0.07) > 1e-4
    found = embeddings(setup.model, TEXTS)
    if way in ("lora", "full", "coop", "cocoop"):
        np.testing.assert_allclose(found[0][:3], image[:3], atol=1e-5)
    if way in ("lora", "full", "vpt", "vpt-deep"):
        np.testing.assert_allclose(found[1], text, atol=1e-5)
    learning = {n for n, p in setup.model.named_parameters() if p.requires_grad}
    setup.model.train_only(setup.recipe.stages[0].train)
    learning = {n for n, p in setup.model.named_parameters() if p.requires_grad}
    assert (learning == set(setup.model.state_dict())) == (way == "full")
    assert way == "full" or all(setup.model.adapter_owns(n) for n in learning)


def test_an_objective_of_another_kind_goes_on_with_the_scale_of_the_run(models: dict[str, str]) -> None:
    """One that holds more than the scale, in the place of the run's contrastive objective."""
    tree = tower_recipe(models["run"], TOWER_WAYS["captions"], "scenes:small", {"keep": 0.0}, overrides=FAST).model_dump(
        by_alias=True
    )
    momentum = {"kind": "info_nce", "momentum": "ema", "queue": 16}
    tree["stages"][0]["objectives"] = {"info_nce": momentum}
    setup = set_up(Recipe.model_validate({**tree, "teachers": {"ema": {"decay": 0.9}}}))
    objective: Any = setup.objectives["info_nce"]
    assert {n for n, _ in objective.named_buffers()} >= {"seen"}
    assert objective.scale.item() == pytest.approx(TrainedModel.load(Path(models["run"]), "cpu").scale)


@pytest.mark.parametrize("name", [name for name in TOWER_WAYS if name != "tpt" and TOWER_WAYS[name].score != "likelihood"])
def test_the_papers_values_are_the_defaults(models: dict[str, str], data: str, name: str) -> None:
    """Optimizer, rate, decay, batch and epochs, read in the papers and the authors' code."""
    want = {
        "coop": ("sgd", 2e-3, 5e-4, 32, 100),
        "coop-class": ("sgd", 2e-3, 5e-4, 32, 100),
        "cocoop": ("sgd", 2e-3, 5e-4, 1, 10),
        "maple": ("sgd", 3.5e-3, 5e-4, 4, 5),
        "mmrl": ("adamw", 1e-3, 5e-4, 4, 10),
        "mmrl++": ("adamw", 1e-3, 5e-4, 4, 10),
        "vpt": ("sgd", 2e-3, 1e-4, 32, 100),
        "vpt-deep": ("sgd", 2e-3, 1e-4, 32, 100),
        "lora": ("adamw", 2e-4, 1e-2, 32, 500 * 2),
        "dora": ("adamw", 2e-4, 1e-2, 32, 500 * 2),
        "vera": ("adamw", 2e-3, 1e-2, 32, 500 * 2),
        "full": ("adamw", 3e-5, 0.1, 512, 10),
        "flyp": ("adamw", 1e-5, 0.2, 256, 20),
        "wise-ft": ("adamw", 3e-5, 0.1, 512, 10),
        "captions": ("adamw", 1e-5, 0.1, 64, 10),
        "cola": ("adamw", 1e-3, 0.01, 64, 10),
    }[name]
    few = f"shots:{data}?shots=2"  # 8 pictures, one batch
    stage = (recipe := tower_recipe(models["clip"], TOWER_WAYS[name], few)).stages[0]
    way = TOWER_WAYS[name]()
    assert (stage.optimizer, stage.lr, stage.weight_decay, way.batch_size) == want[:4]
    assert recipe.budget.samples == want[4] * 8 and stage.batch_size == min(8, want[3]) and stage.ema == 0
    assert recipe.budget.seconds is None
    assert tower_recipe(models["clip"], way, few, budget="30s").budget.seconds == 30
    assert tower_recipe(models["clip"], way, few, budget="40 samples").budget.samples == 40
    assert tower_recipe(models["clip"], way, few, budget="1M samples").budget.samples == want[4] * 8
    assert way.about and "arXiv:" in way.cite


def test_the_length_depends_on_the_pictures_of_a_class(models: dict[str, str], data: str) -> None:
    epochs = {k: tower_recipe(models["clip"], TOWER_WAYS["coop"], f"shots:{data}?shots={k}").budget.samples for k in (1, 4, 8)}
    assert [epochs[k] / (4 * k) for k in (1, 4, 8)] == [50, 100, 200]  # type: ignore[operator]
    assert tower_recipe(models["clip"], TOWER_WAYS["coop"], f"shots:{data}?shots=1", {"epochs": 3}).budget.samples == 12


def test_the_warm_up_ends_within_the_budget(models: dict[str, str], data: str) -> None:
    """Also of data without end, of which an epoch would never end."""
    way, few = TOWER_WAYS["captions"], f"shots:{data}?shots=8"

    def warmup(name: str, address: str, budget: str | None, **settings: Any) -> int:
        return tower_recipe(models["run"], TOWER_WAYS[name], address, settings, budget=budget).stages[0].warmup

    assert warmup(way.name, "scenes:small", "6400 samples") == 10 and warmup(way.name, "scenes:small", "20 steps") == 2
    assert warmup(way.name, "scenes:small", None) == 500 and warmup(way.name, "scenes:small", "30s") == 50
    assert warmup("coop", few, None) == 1 and warmup("coop", few, None, batch_size=8) == 4  # an epoch, as in the paper


def test_flyp_counts_captions_of_the_same_class_as_its_authors_do(models: dict[str, str], data: str) -> None:
    """As the authors' code: the plain contrastive loss, in which they are negatives; or left out, if asked for."""
    for same, settings in (("keep", None), ("mask", {"same": "mask"})):
        setup = started(models["clip"], "flyp", data, settings)
        batch = training_loader(setup, setup.recipe.stages[0], setup.source).batch(0)
        p = setup.model.encode(batch)
        image, text = (p[f"{side}.embedding"].detach().double().numpy() for side in ("image", "text"))
        objective: Any = next(iter(setup.objectives.values()))
        strings = batch["text"].strings
        assert len(set(strings)) < len(strings) == len(image) and strings[0].startswith("a photo of a")
        logits = float(objective.scale.detach()) * image @ text.T
        want = 0.0
        for matrix in (logits, logits.T):
            for i, row in enumerate(matrix):
                others = [j for j in range(len(row)) if same == "keep" or j == i or strings[j] != strings[i]]
                want += np.log(np.exp(row[others] - row[i]).sum()) / (2 * len(row))
        assert objective(p).item() == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("way", ["full", "flyp", "captions"])
def test_a_batch_in_pieces_has_the_same_gradient(models: dict[str, str], data: str, way: str) -> None:
    setup = started(models["run"], way, data, {"augment": "none"})
    setup.model.train_only(setup.recipe.stages[0].train)
    both = torch.nn.ModuleList([setup.model.train(), setup.objectives])
    loader = training_loader(setup, setup.recipe.stages[0], setup.source)
    weights = {name: spec.weight for name, spec in setup.recipe.stages[0].objectives.items()}
    objectives: Any = dict(setup.objectives.items())
    found = []
    for micro in (None, 2):
        both.zero_grad()
        pieces = Pieces(Share(loader, 0, Cluster(), micro), 0)
        BatchGradient(setup.model, Cluster(), False, 0, FlopMeter())(0, pieces, objectives, weights)
        found.append({n: p.grad.clone() for n, p in both.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and len(found[0]) > 20
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-3)


# --- texts ---


@pytest.mark.parametrize("of", ["clip", "siglip", "run"])
def test_class_vectors_are_those_of_their_names_however_they_are_listed(
    models: dict[str, str], data: str, of: str, tmp_path: Path
) -> None:
    """CoOp's trap: vectors that were saved for some names must not come back for others. Each name's vector is that of the name alone,
    read at its own end behind the context, in training, after loading, and with the classes in another order or number.
    """
    out = fit(models[of], TOWER_WAYS["coop"], data, tmp_path / "coop", shots=2, budget="16 samples", overrides=FAST)
    base = TrainedModel.load(out, "cpu")
    stir(base.model, 1.0)
    names = [*NAMES, "blue_dog"]
    alone = np.concatenate([class_vectors(base, [name]) for name in names])
    assert np.abs(alone[0] - alone[1]).max() > 1e-3
    order = [4, 2, 0]
    np.testing.assert_allclose(class_vectors(base, [names[i] for i in order]), alone[order], atol=1e-6)
    tower, space, tokenizer = base.model.part("text"), base.model.part("space"), base.model.tokenizer
    context = base.model.adapters["text"].vectors
    with torch.no_grad():
        for name, vector in zip(names, alone, strict=True):
            ids = torch.from_numpy(tokenizer.encode_batch([name.replace("_", " ")])[0][0])
            ids = ids[ids != 0]
            words = tower.embedding(ids)
            if of == "siglip":  # it reads its padding, and the last position
                rest = torch.zeros(len(tower.positions) - len(ids) - len(context), dtype=torch.long)
                words = torch.cat([words, tower.embedding(rest)])
            x = torch.cat([words[:1], context, words[1:]])
            mask = None if of == "siglip" else torch.full((len(x), len(x)), float("-inf")).triu(1)[None, None]
            x = tower.transformer((x + tower.positions[: len(x)])[None], mask)[0, -1]
            np.testing.assert_allclose(unit_rows(space.text(x)[None].numpy())[0], vector, atol=1e-5)


def test_a_long_name_is_cut_before_its_end_and_the_context_leaves_room(models: dict[str, str], tmp_path: Path, data: str) -> None:
    setup = started(models["clip"], "coop", data)
    context = setup.model.adapters["text"].vectors
    assert len(context) == 8 and setup.tokenizer.max_length == 16 - 8  # of 16 positions; CLIP's 77 have room for all 16
    long = "a red dog on the left of a blue cat in the photo of two star"
    ids, mask = setup.tokenizer.encode_batch([long, "cat"])
    assert mask.sum(1).tolist()[0] == 8 and ids[0][7] == ids[1][mask[1]][-1]  # both end with [EOS]
    with pytest.raises(DiptychError, match="leave no room for words"):
        started(models["clip"], "coop", data, {"words": "a photo of a red dog on the left of a blue cat"})


def test_the_run_names_its_classes(models: dict[str, str], data: str, tmp_path: Path) -> None:
    out = fit(models["clip"], TOWER_WAYS["lora"], data, tmp_path / "lora", shots=2, seed=1, budget="32 samples", overrides=FAST)
    model = load(out, device="cpu")
    assert isinstance(model, AdaptedModel) and model.classes == tuple(sorted(NAMES))
    found = model.classify(pictures())
    ours = TrainedModel.load(out, "cpu")
    texts = [f"a photo of a {name.replace('_', ' ')}" for name in sorted(NAMES)]
    logits = ours.scale * ours.embed_image(pictures()) @ ours.embed_text(texts).T
    want = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(found, want / want.sum(1, keepdims=True), atol=1e-5)
    moved = out.rename(tmp_path / "moved")  # a run with its classes can be moved
    np.testing.assert_allclose(load(moved, device="cpu").classify(pictures()), found, atol=1e-6)  # type: ignore[attr-defined]
    assert (
        fit(models["clip"], TOWER_WAYS["lora"], data, moved, shots=2, seed=1, budget="32 samples") == moved
    )  # finished: nothing to do
    with pytest.raises(DiptychError, match="holds a run with seed 1, not 2"):
        fit(models["clip"], TOWER_WAYS["lora"], data, moved, shots=2, seed=2)


@pytest.mark.parametrize("way", ["cocoop", "maple", "mmrl", "mmrl++", "vpt-deep"])
def test_ways_with_prompts_in_both_towers_end_in_runs_that_name_their_classes(
    models: dict[str, str], data: str, tmp_path: Path, way: str
) -> None:
    for of in ("clip", "run"):
        out = fit(models[of], TOWER_WAYS[way], data, tmp_path / of, shots=2, budget="16 samples", overrides=FAST)
        model, ours = load(out, device="cpu"), TrainedModel.load(out, "cpu")
        assert isinstance(model, AdaptedModel)
        template = TOWER_WAYS[way]().template
        texts = [template.format(name.replace("_", " ")) for name in sorted(NAMES)]
        logits = ours.scale * np.asarray(ours.score(pictures(), texts))
        want = np.exp(logits - logits.max(1, keepdims=True))
        np.testing.assert_allclose(model.classify(pictures()), want / want.sum(1, keepdims=True), atol=1e-5)


def test_classes_that_depend_on_the_image_are_named_by_scores(tmp_path: Path) -> None:
    """Where a class has no vector of its own: the probabilities are the softmax of the scaled scores, also after loading."""
    from diptych.core.capabilities import FunctionModel
    from diptych.inference.heads import Texts

    model = FunctionModel("by length", score=lambda images, of: [[x.mean() / 255 * len(text) / 10 for text in of] for x in images])
    texts = ("a cat", "a red fox", "an owl")
    adapted = AdaptedModel("a", model, Texts(texts, 7.0), ["cat", "fox", "owl"])
    adapted.save(tmp_path, "mine")
    shown = pictures()
    want = np.exp([[7.0 * x.mean() / 255 * len(text) / 10 for text in texts] for x in shown])
    again = AdaptedModel.load(tmp_path, lambda address, device: model)
    np.testing.assert_allclose(again.classify(shown), want / want.sum(1, keepdims=True), atol=1e-5)
    with pytest.raises(DiptychError, match="have no vectors"):
        again.head.logits(np.zeros((1, 4)))


# --- merging and export ---


@pytest.mark.parametrize("way", ["lora", "dora", "vera"])
def test_merged_adapters_compute_what_they_did_on_a_model_of_transformers(models: dict[str, str], data: str, way: str) -> None:
    for of in ("clip", "siglip"):
        model = started(models[of], way, data).model
        before = embeddings(model, TEXTS)
        stir(model)
        adapted = embeddings(model, TEXTS)
        assert min(np.abs(a - b).max() for a, b in zip(before, adapted, strict=True)) > 1e-3
        model.merge_adapters()
        for a, b in zip(adapted, embeddings(model, TEXTS), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def learned(model: str, way: str, data: str, out: Path) -> Path:
    """A run of a few steps at a high rate, so that its weights are others than before."""
    return fit(model, TOWER_WAYS[way], data, out, shots=2, budget="64 samples", settings={"lr": 0.01}, overrides=FAST)


@pytest.mark.parametrize(("of", "way"), [("clip", "lora"), ("clip", "full"), ("clip", "flyp"), ("siglip", "dora"), ("run", "vera")])
def test_an_adapted_model_opens_in_transformers_with_the_same_vectors(
    models: dict[str, str], data: str, tmp_path: Path, of: str, way: str
) -> None:
    out = learned(models[of], way, data, tmp_path / "siglip-run" if of == "siglip" else tmp_path / "run")
    ours = TrainedModel.load(out, "cpu")
    made = export(out, out=tmp_path / ("siglip" if of == "siglip" else "export"))
    assert made.architecture == {"siglip": "SiglipModel"}.get(of, "CLIPModel")
    image, text, scale = theirs(f"hf:{made.path}", TEXTS)
    np.testing.assert_allclose(image, ours.embed_image(pictures()), atol=1e-5)
    np.testing.assert_allclose(text, ours.embed_text(TEXTS), atol=1e-5)
    assert scale == pytest.approx(ours.scale, rel=1e-5)
    if of != "run":
        assert np.abs(theirs(models[of], TEXTS)[1] - text).max() > 1e-3  # it did learn


def test_an_adapted_model_opens_in_sentence_transformers(models: dict[str, str], data: str, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    out = learned(models["clip"], "lora", data, tmp_path / "run")
    made, ours = export(out, out=tmp_path / "export"), TrainedModel.load(out, "cpu")
    clip = sentence_transformers.models.CLIPModel if hasattr(sentence_transformers, "models") else None
    module = clip(str(made.path)) if clip else None
    modules = [module] if module is not None else None
    model = sentence_transformers.SentenceTransformer(None if modules else str(made.path), modules=modules, device="cpu")
    text = unit_rows(model.encode(TEXTS))
    image = unit_rows(model.encode([Image.fromarray(x) for x in pictures()]))
    np.testing.assert_allclose(text, ours.embed_text(TEXTS), atol=1e-5)
    np.testing.assert_allclose(image, ours.embed_image(pictures()), atol=1e-5)


def test_an_adapted_model_opens_in_open_clip(models: dict[str, str], data: str, tmp_path: Path) -> None:
    """Needs make bench-peers."""
    from bench.peers import MissingPeer
    from bench.peers import open_clip as peer
    from diptych.data.fields.base import to_pixels

    try:
        open_clip = peer()
    except MissingPeer as missing:
        pytest.skip(str(missing))
    out = learned(models["run"], "lora", data, tmp_path / "run")
    made, ours = export(out, "open_clip", tmp_path / "export"), TrainedModel.load(out, "cpu")
    address = f"local-dir:{made.path}"
    model, tokenise = open_clip.create_model(address).eval(), open_clip.get_tokenizer(address)
    with torch.no_grad():
        image, text, scale = model(to_pixels(pictures(3)), tokenise(TEXTS))
    np.testing.assert_allclose(image, ours.embed_image(pictures(3)), atol=1e-5)
    np.testing.assert_allclose(text, ours.embed_text(TEXTS), atol=1e-5)
    assert scale.item() == pytest.approx(ours.scale, rel=1e-5)


def test_prompts_are_refused_by_an_export(models: dict[str, str], data: str, tmp_path: Path) -> None:
    out = fit(models["clip"], TOWER_WAYS["vpt"], data, tmp_path / "vpt", shots=1, budget="4 samples", overrides=FAST)
    with pytest.raises(DiptychError, match="prompts cannot be merged"):
        export(out, out=tmp_path / "export")


# --- captions ---


def test_captions_of_ones_own_beside_the_model_as_it_was(models: dict[str, str], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i, text in enumerate(["a red cat", "a blue dog", "two green star", "a dog and a cat"] * 4):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "photos" / f"{i}.png")
        (tmp_path / "photos" / f"{i}.txt").write_text(text)
    address = f"folder:{tmp_path / 'photos'}"
    drift = {}
    for keep in (0.0, 20.0):
        settings = {"keep": keep, "lr": 3e-3, "of": "vectors", "batch_size": 4}
        out = fit(
            models["clip"],
            TOWER_WAYS["captions"],
            address,
            tmp_path / str(keep),
            budget="64 samples",
            settings=settings,
            overrides=FAST,
        )
        model: Any = load(out, device="cpu")
        assert isinstance(model, TrainedModel) and ("base" in model.recipe.teachers) == bool(keep)
        image, text, _ = theirs(models["clip"], TEXTS)
        drift[keep] = float(np.abs(model.embed_image(pictures()) - image).mean() + np.abs(model.embed_text(TEXTS) - text).mean())
    assert 0 < drift[20.0] < 0.5 * drift[0.0]  # it is drawn back to what it was


# --- what is refused ---


def test_what_cannot_be_adapted_is_refused(models: dict[str, str], data: str, tmp_path: Path) -> None:
    way = TOWER_WAYS["lora"]
    with pytest.raises(DiptychError, match="unknown option 'ranks'; did you mean 'rank'"):
        tower_recipe(models["clip"], way, data, {"ranks": 3})
    with pytest.raises(DiptychError, match="--way lora.rank: expected .*valid integer"):
        tower_recipe(models["clip"], way, data, {"rank": "many"})
    with pytest.raises(DiptychError, match="there is no way of adapting a tower 'loro'; did you mean 'lora'"):
        tower_way_named("loro")
    with pytest.raises(DiptychError, match="no run at 'nowhere'"):
        tower_recipe("nowhere", way, data)
    one = folders(tmp_path / "one")
    for name in NAMES[1:]:
        (one / name).rename(tmp_path / name)
    with pytest.raises(DiptychError, match="needs two classes or more, found 1"):
        tower_recipe(models["clip"], way, f"classes:{one}")
    adapted = learned(models["run"], "lora", data, tmp_path / "lora")
    with pytest.raises(DiptychError, match="has adapters already .*export it"):
        tower_recipe(str(adapted), way, data)
    again = tower_recipe(f"hf:{export(adapted, out=tmp_path / 'merged').path}", way, data)
    assert again.parts["vision"].kind == "clip"
    from diptych.core.files import read_json, write_json

    path = foreign_fixture.clip(tmp_path / "odd")
    write_json(path / "tokenizer_config.json", {**read_json(path / "tokenizer_config.json"), "bos_token": None})
    with pytest.raises(DiptychError, match="it has no token for the beginning .*choose one that works on image vectors"):
        tower_recipe(f"hf:{path}", way, data)


def test_a_run_that_scores_otherwise_is_refused(tmp_path: Path) -> None:
    from diptych.config.recipe import load_recipe

    small = [f"parts.{p}.{k}" for p in ("vision", "text") for k in ("depth=1", "width=32", "heads=2")]
    fast = ["data.train=scenes:small?length=16", "budget=8 samples", "stages.0.batch_size=8", "precision=fp32", "trackers=[]"]
    train(load_recipe("filip", [*small, *fast, "data.tokenizer.vocab_size=320"]), tmp_path / "filip")
    with pytest.raises(DiptychError, match="scored by late_interaction"):
        tower_recipe(str(tmp_path / "filip"), TOWER_WAYS["lora"], "shots:scenes:small?shots=1")


def test_every_recipe_is_one_that_can_be_saved_and_read_again(models: dict[str, str], data: str, tmp_path: Path) -> None:
    import yaml

    for name, way in TOWER_WAYS.items():
        if way.score == "likelihood":  # of runs with a language model
            continue
        recipe = tower_recipe(models["run"], way, f"shots:{data}?shots=2")
        assert Recipe.model_validate(yaml.safe_load(recipe.to_yaml())) == recipe, name
