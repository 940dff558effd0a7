"""Runs that read pictures in tiles as ``LlavaNextForConditionalGeneration``: grids, pixels, order of the tokens and logits are the
class's, to 1e-5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.config.recipe import load_recipe
from diptych.core.batch import Batch, Texts
from diptych.core.errors import DiptychError
from diptych.core.sample import Turn
from diptych.data.conversations.turns import question
from diptych.data.fields.tiles import collated_pictures
from diptych.interop import family_for
from diptych.models.vlm import build_model
from diptych.objectives import build_objectives
from diptych.training.start.setup import chat_of

SIDE = 32
SHAPES = [(40, 100), (90, 40), (64, 64), (30, 31), (150, 40), (23, 170)]
SAID = ["a big red fox left of two small blue keys", "above the yellow house"]
PARTS = [
    "parts.vision={kind: siglip, width: 32, heads: 2, depth: 2, hidden: 48, patch: 8}",
    "parts.lm={kind: random}",
    "adapters={}",
    "precision=fp32",
    f"data.image_size={SIDE}",
]


def made(*overrides: str, captions: bool = True) -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    stages = "stages=[{objectives: {next_token: 1}}]" if captions else "stages=[{objectives: {answers: 1}}]"
    recipe = load_recipe("llava-next", [*PARTS, stages, *overrides])
    model = build_model(recipe, None, SIDE, SAID)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return recipe, model.eval(), build_objectives(recipe, model)


def pictures() -> list[np.ndarray]:
    return [np.random.default_rng(i).integers(0, 256, (*shape, 3), dtype=np.uint8) for i, shape in enumerate(SHAPES)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    recipe, model, objectives = made()
    out = tmp_path_factory.mktemp("next") / "out"
    out.mkdir()
    family_for("transformers", recipe, model, objectives).write(out, model, objectives)
    there = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(out)
    assert (type(there).__name__, type(processor).__name__) == ("LlavaNextForConditionalGeneration", "LlavaNextProcessor")
    return model, there, processor


def test_pixels_are_those_of_the_processor(exported: tuple[Any, Any, Any]) -> None:
    model, _, processor = exported
    theirs = processor.image_processor([Image.fromarray(i) for i in pictures()], return_tensors="pt")
    ours = collated_pictures(pictures(), SIDE, model.own_fields)
    assert ours.sizes is not None and ours.sizes.tolist() == theirs["image_sizes"].tolist()  # type: ignore[attr-defined]
    real = ours.real  # type: ignore[attr-defined]
    assert set(real.sum(1).tolist()) == {3, 4, 5}
    assert torch.equal(real, (theirs["pixel_values"].flatten(2) != 0).any(2))
    torch.testing.assert_close(ours.floats[real], theirs["pixel_values"][real].float(), atol=1e-5, rtol=0)


def test_logits_are_those_of_the_class(exported: tuple[Any, Any, Any]) -> None:
    """Pictures of six shapes in one batch: each caption's logits are those of the class, which reads one picture after the other."""
    model, there, processor = exported
    images = pictures()
    texts = [SAID[i % 2] for i in range(len(images))]
    ids, seen = (torch.from_numpy(x) for x in model.tokenizer.encode_batch(texts))
    batch = Batch({"image": collated_pictures(images, SIDE, model.own_fields), "text": Texts(ids, seen)}, len(images))
    p = model.encode(batch)
    ours, counts = p["text.logits"], p["image.prefix"].counts.tolist()
    assert len(set(counts)) > 3
    cached = model.part("lm").continue_logits(p["image.kv_cache"], ids, seen)
    alone = model.part("lm").image_state(p["image.kv_cache"])
    for i, image in enumerate(images):
        shown = processor.image_processor([Image.fromarray(image)], return_tensors="pt")
        wanted = processor.replace_image_token(shown, 0).count("<image>")
        assert counts[i] == wanted
        words = torch.tensor([model.tokenizer.original(ids[i].tolist())])
        words = torch.cat([words[:, :1], torch.full((1, wanted), there.config.image_token_id), words[:, 1:-1]], 1)
        kept = torch.tensor(model.tokenizer.original(list(range(len(model.tokenizer)))))
        with torch.no_grad():
            theirs = there(input_ids=words, **shown).logits[:, wanted:, kept][0]
        real = seen[i, 1:]
        assert ours[i][real].std() > 1e-2
        torch.testing.assert_close(ours[i][real], theirs[real], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(cached[i][real], theirs[real], atol=1e-5, rtol=1e-5)
        one = model.encode(Batch({"image": collated_pictures([image], SIDE, model.own_fields)}, 1))
        assert isinstance(one["image.prefix"], torch.Tensor), "pictures with equally many tokens need no padding"
        torch.testing.assert_close(one["image.state"][0], alone[i], atol=1e-5, rtol=1e-5)


def test_conversations_hold_as_many_places_as_the_class_reads(tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from diptych.inference.run import TrainedModel

    recipe, model, objectives = made(captions=False)
    out = tmp_path / "out"
    out.mkdir()
    family_for("transformers", recipe, model, objectives).write(out, model, objectives)
    there = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(out)
    trained = TrainedModel("next", recipe, model, objectives, torch.device("cpu"))
    assert trained.answering is not None
    chat = chat_of(recipe, model)
    with torch.no_grad():
        images = pictures()[:3]
        asked = [trained.answering._prompt([question("red fox?")], 1) for _ in images]
        read = trained.answering._read([[i] for i in images], asked)
        ours = model.part("lm").lm.head(read.last[:, -1])
        kept = torch.tensor(model.tokenizer.original(list(range(len(model.tokenizer)))))
        for i, image in enumerate(images):
            shown = processor.image_processor([Image.fromarray(image)], return_tensors="pt")
            n = processor.replace_image_token(shown, 0).count("<image>")
            ids = [[there.config.image_token_id] * n if k < 0 else model.tokenizer.original([k]) for k in asked[i]]
            theirs = there(input_ids=torch.tensor([[k for run in ids for k in run]]), **shown).logits[0, -1, kept]
            torch.testing.assert_close(ours[i], theirs, atol=1e-5, rtol=1e-5)
    from diptych.data.fields.tiles import cutting_of

    cutting = cutting_of(recipe.data.fields, SIDE)
    assert cutting is not None and chat.count is not None
    shown = [cutting(image) for image in images[:2]]
    turns = [question("red fox?"), Turn("assistant", "two"), Turn("user", "<image> keys?"), Turn("assistant", "blue")]
    plain, lesson = chat.document(turns), chat.lesson(turns, shown)
    assert [i for i in lesson.ids if i >= 0] == [i for i in plain.ids if i >= 0]
    assert lesson.ids.count(-1) == sum(map(chat.count, shown)) and lesson.images == 2
    assert sum(lesson.learned) == sum(plain.learned)
    chat.room = max(k for k, i in enumerate(lesson.ids) if i < 0)  # without the last place
    short = chat.lesson(turns, shown)
    assert short.images == 1 and short.ids.count(-1) == chat.count(shown[0]), "a picture that would be cut is left out"


def test_what_does_not_fit_is_refused_with_the_remedy() -> None:
    recipe, model, objectives = made("parts.connector={kind: mlp, norm: false}", "data.fields={}")
    assert family_for("transformers", recipe, model, objectives).architecture == "LlavaForConditionalGeneration"
    recipe, model, objectives = made("data.fields={}")
    with pytest.raises(DiptychError, match="data.fields=.image"):
        family_for("transformers", recipe, model, objectives, "LlavaNextForConditionalGeneration")
