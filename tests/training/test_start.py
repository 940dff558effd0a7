"""``weights:`` of a recipe: a run that starts from a run, or from a checkpoint of transformers, computes at its start what that
computes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import foreign_fixture
from batch_fixture import pass_of
from diptych.config.recipe import load_recipe
from diptych.core.encodings import Pass
from diptych.core.errors import DiptychError
from diptych.core.files import read_json, write_json
from diptych.core.sample import Sample, captioned
from diptych.data.text import Tokenizer
from diptych.inference.export import export
from diptych.inference.run import TrainedModel
from diptych.interop.tokenizer import Vocabulary, adopt
from diptych.objectives import Objective
from diptych.training.checkpoint import find_checkpoint
from diptych.training.loop import Trainer, train
from diptych.training.start.setup import Setup, set_up

SIZES = [f"parts.{p}.{k}" for p in ("vision", "text") for k in ("kind=clip", "depth=1", "width=32", "heads=2", "hidden=48")]
FAST = ["stages.0.batch_size=16", "precision=fp32", "trackers=[]", "budget=32 samples", "device=cpu"]
CLIP = [*SIZES, "embed_dim=24", "parts.vision.patch=16", "data.tokenizer.vocab_size=320", *FAST]
TEXTS = ["a red fox", "two green keys to the left of a big yellow house", "a cat"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "clip"
    train(load_recipe("clip", [*CLIP, "stages.0.ema=0.5", "stages.0.lr=0.01"]), path)
    return path


def embeddings(setup: Setup, images: list[np.ndarray], texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    model = setup.model.eval()
    with torch.no_grad():
        p = pass_of(model, images, texts)
        return p["image.embedding"].numpy(), p["text.embedding"].numpy()


def pictures(size: int) -> list[np.ndarray]:
    return [np.random.default_rng(i).integers(0, 256, (size, size, 3), dtype=np.uint8) for i in range(3)]


@pytest.mark.parametrize("of", ["run", "export"])
def test_a_run_starts_where_another_ended(run: Path, tmp_path: Path, of: str) -> None:
    address = str(run) if of == "run" else f"hf:{export(run, out=tmp_path / 'export').path}"
    setup = set_up(load_recipe("clip", [*CLIP, f"weights={address}", "data.tokenizer.vocab_size=4096", "seed=7"]))
    ours = TrainedModel.load(run, "cpu")
    images = pictures(ours.model.image_size)
    image, text = embeddings(setup, images, TEXTS)
    np.testing.assert_allclose(image, ours.embed_image(images), atol=1e-6)
    np.testing.assert_allclose(text, ours.embed_text(TEXTS), atol=1e-6)
    assert setup.tokenizer.to_json() == ours.model.tokenizer.to_json()  # it came along
    scales = [o["info_nce"].logit_scale.item() for o in (setup.objectives, ours.objectives)]
    assert scales[0] == pytest.approx(scales[1])
    assert setup.started and not setup.started.fresh and not setup.started.unused


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_run_starts_from_weights_that_see_and_read_otherwise(tmp_path: Path, kind: str) -> None:
    """Their mean and deviation, words of their own, no [MASK]; texts and pictures as their processor gives them."""
    from transformers import AutoModel, AutoProcessor

    path = getattr(foreign_fixture, kind)(tmp_path / kind)
    model, processor = AutoModel.from_pretrained(path).eval(), AutoProcessor.from_pretrained(path)
    with pytest.raises(DiptychError, match="it fits with") as refused:
        set_up(load_recipe(kind, [*FAST, f"weights=hf:{path}"]))
    named = str(refused.value).split("it fits with ")[1].replace("--set ", "").split()
    assert {f"parts.vision.kind={kind}", f"parts.text.kind={kind}", "data.image_size=32"} <= set(named)
    setup = set_up(load_recipe(kind, [*FAST, f"weights=hf:{path}", *named]))  # what it says is enough
    texts = ["a red cat", "two dog on the left", "a picture of a green star in the blue photo"]
    padding = "max_length" if kind == "siglip" else True
    shown = [Image.fromarray(i) for i in pictures(32)]
    inputs = processor(images=shown, text=texts, padding=padding, max_length=16, truncation=True, return_tensors="pt")
    inputs.pop("attention_mask")
    with torch.no_grad():
        out = model(**inputs)
    image, text = embeddings(setup, pictures(32), texts)
    np.testing.assert_allclose(image, torch.nn.functional.normalize(out.image_embeds, dim=-1), atol=1e-5)
    np.testing.assert_allclose(text, torch.nn.functional.normalize(out.text_embeds, dim=-1), atol=1e-5)
    if kind == "clip":
        assert model.vision_model.embeddings.patch_embedding.weight.std() != setup.model.part("vision").stem.weight.std()


def test_one_picture_and_one_text_count_as_one(run: Path, tmp_path: Path) -> None:
    model, picture = TrainedModel.load(run, "cpu"), pictures(40)[0]
    Image.fromarray(picture).save(tmp_path / "a.png")
    expected = model.score([picture], ["a red fox"])
    for given in (picture, Image.fromarray(picture), tmp_path / "a.png", str(tmp_path / "a.png")):
        np.testing.assert_allclose(model.score(given, "a red fox"), expected, atol=1e-6)
    for mode in ("L", "RGBA", "P"):
        other = Image.fromarray(picture).convert(mode)
        assert model.score([other], ["a red fox", "a cat"]).shape == (1, 2) and model.score(other, "a cat").shape == (1, 1)
    assert model.embed_text("a cat").shape == model.embed_image(picture).shape == (1, 24)
    np.testing.assert_allclose(model.embed_text("a cat"), model.embed_text(["a cat"]))


def test_what_has_no_counterpart_starts_fresh_and_is_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    towers = [
        f"parts.{part}={{kind: clip, depth: 1, width: 32, heads: 2, hidden: 48{more}}}"
        for part, more in (("vision", ", patch: 16"), ("text", ""))
    ]
    recipe = load_recipe("coca", [*towers, "embed_dim=24", "parts.decoder.depth=1", f"weights={run}", *FAST])
    done = train(recipe, tmp_path / "coca")
    said = capsys.readouterr().err
    assert "loaded: parts.vision, parts.text" in said and "fresh: parts.decoder" in said
    noted = read_json(done.path / "environment.json")["weights"]
    assert noted["key"] == TrainedModel.load(run, "cpu").key and "parts.decoder" in noted["fresh"]
    assert load_recipe(str(done.path)).weights == str(run)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["parts.vision.width=64"], r"does not fit parts.vision: .*--set parts.vision.width=32"),
        (["parts.vision.kind=vit"], r"absent.*--set parts.vision.kind=clip"),
        (["embed_dim=16"], r"does not fit parts.space: parts.space.image.*--set embed_dim=24"),
        (["data.tokenizer.max_length=16"], r"--set data.tokenizer.max_length=32"),
        (["weights=nowhere"], "no run at 'nowhere'"),
        (["weights=hf:nowhere/at-all"], "cannot be loaded"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_remedy(
    run: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], message: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DiptychError, match=message):
        set_up(load_recipe("clip", [*CLIP, f"weights={run}", *overrides]))


def test_a_part_alone_comes_without_the_words(run: Path) -> None:
    """A tower that was learned beside texts under a language model of another tokenizer."""
    tower = ["parts.vision={kind: clip, depth: 1, width: 32, heads: 2, hidden: 48, patch: 16, frozen: true}"]
    blip2 = [*tower, "parts.lm={kind: random, frozen: true}", "parts.text.places=false", *FAST]
    setup = set_up(load_recipe("blip2", [*blip2, f"weights={run}?parts=vision"]))
    ours = TrainedModel.load(run, "cpu")
    for name, value in ours.model.part("vision").state_dict().items():
        torch.testing.assert_close(setup.model.part("vision").state_dict()[name], value)
    assert setup.started and setup.started.loaded == ["parts.vision"] and "parts.text" in setup.started.fresh
    assert setup.tokenizer is setup.model.tokenizer is setup.model.part("lm").lm.tokenizer
    fresh = set_up(load_recipe("clip", [*CLIP, f"weights={run}?parts=vision", "data.tokenizer.vocab_size=400"]))
    assert len(fresh.tokenizer) == 400
    for wrong, words in (
        (f"{run}?parts=visoin", "there is no part 'visoin'; did you mean 'vision'"),
        (f"{run}?part=vision", "has no option 'part'; expected parts"),
        ("hf:somewhere?parts=vision", r"a tower by parts.vision=\{kind: hf, from: 'hf:somewhere'\}"),
    ):
        with pytest.raises(DiptychError, match=words):
            set_up(load_recipe("clip", [*CLIP, f"weights={wrong}"]))


def test_a_run_goes_on_though_what_it_started_from_is_gone(run: Path, tmp_path: Path) -> None:
    origin = Path(shutil.copytree(run, tmp_path / "origin"))
    recipe = load_recipe("clip", [*CLIP, f"weights={origin}", "data.tokenizer.vocab_size=4096"])
    first = train(recipe, tmp_path / "run")
    shutil.rmtree(origin)
    more = load_recipe("clip", [*CLIP, f"weights={origin}", "data.tokenizer.vocab_size=4096", "budget=64 samples"])
    done = train(more, first.path, resume=True)
    assert done.spent["samples"] == 64
    assert TrainedModel.load(done.path, "cpu").model.tokenizer.to_json() == Tokenizer(run / "tokenizer.json", 32).to_json()


def test_a_tokenizer_that_marks_no_beginning_stays_behind(tmp_path: Path) -> None:
    """As the original SigLIP's: the towers are loaded, the vectors of words are not, and that is said."""
    path = foreign_fixture.siglip(tmp_path / "siglip")
    config = read_json(path / "tokenizer_config.json")
    write_json(path / "tokenizer_config.json", {**config, "bos_token": None})
    with pytest.raises(DiptychError) as refused:
        set_up(load_recipe("siglip", [*FAST, f"weights=hf:{path}"]))
    named = str(refused.value).split("it fits with ")[1].replace("--set ", "").split()
    setup = set_up(load_recipe("siglip", [*FAST, f"weights=hf:{path}", *named]))
    assert setup.started and "it has no token for the beginning" in str(setup.started) and len(setup.tokenizer) > 300
    words = setup.model.part("text").embedding.weight
    assert words.shape[0] == len(setup.tokenizer)


def started(path: Path, kind: str, pictures: dict[str, object]) -> str:
    """What is said where a run starts from the checkpoint, of which the image processor says ``pictures``."""
    file = path / "processor_config.json"
    says = read_json(file)
    write_json(file, {**says, "image_processor": {**says["image_processor"], **pictures}})
    with pytest.raises(DiptychError) as refused:
        set_up(load_recipe(kind, [*FAST, f"weights=hf:{path}"]))
    named = str(refused.value).split("it fits with ")[1].replace("--set ", "").split()
    return str(set_up(load_recipe(kind, [*FAST, f"weights=hf:{path}", *named])).started)


@pytest.mark.parametrize(
    ("kind", "pictures", "words", "silent"),
    [
        (
            "clip",
            {},
            r"embeds 'A Photo Of A Red Dog' otherwise \(cosine 0\.\d+\): its tokenizer distinguishes letter case",
            "picture",
        ),
        ("clip", {"image_mean": [0.1] * 3, "image_std": [0.7] * 3}, "'A Photo Of", "picture"),
        ("clip", {"do_normalize": False}, "'A Photo Of", "picture"),
        ("clip", {"do_rescale": False}, "'A Photo Of", "picture"),
        ("clip", {"size": {"shortest_edge": 48}}, r"a square picture otherwise \(cosine 0\.\d+\): its processor scales", "a wide"),
        ("siglip", {}, "a wide picture otherwise .*does not cut out the middle", "a square"),
        ("siglip", {"size": {"height": 48, "width": 48}}, "its image side could not be compared", "embeds a"),
    ],
)
def test_what_their_own_pipeline_computes_otherwise_is_said(
    tmp_path: Path, kind: str, pictures: dict[str, object], words: str, silent: str
) -> None:
    said = started(getattr(foreign_fixture, kind)(tmp_path / kind), kind, pictures)
    assert re.search(words, said) and silent not in said, said


def test_a_pipeline_that_agrees_needs_no_note(run: Path, tmp_path: Path) -> None:
    address = f"hf:{export(run, out=tmp_path / 'export').path}"
    setup = set_up(load_recipe("clip", [*CLIP, f"weights={address}", "data.tokenizer.vocab_size=4096"]))
    assert setup.started and setup.started.notes == []


@pytest.mark.parametrize(
    ("template", "words"), [("$A </s>", "<s> before a text"), ("<s> $A", "</s> after a text"), ("$A", "<s> before")]
)
def test_a_tokenizer_that_does_not_write_its_marks_stays_behind(tmp_path: Path, template: str, words: str) -> None:
    """It names [BOS] and [EOS], but puts them around no text."""
    from tokenizers import processors

    theirs = foreign_fixture._tokenizer("<s>", "</s>")
    marks = [(mark, theirs.convert_tokens_to_ids(mark)) for mark in ("<s>", "</s>")]
    theirs.backend_tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=marks)
    with pytest.raises(DiptychError, match=f"it does not put {words}"):
        adopt(theirs)


@pytest.mark.parametrize("unknown", ["<|endoftext|>", "<|startoftext|>", "<unk>"])
def test_an_unknown_word_may_be_one_of_the_marks(unknown: str) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["a", "cat", "<unk>", "<|startoftext|>", "<|endoftext|>"])}
    backend = Backend(models.WordLevel(words, unk_token=unknown))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(mark, words[mark]) for mark in ("<|startoftext|>", "<|endoftext|>")]
    backend.post_processor = processors.TemplateProcessing(single="<|startoftext|> $A <|endoftext|>", special_tokens=ends)
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|startoftext|>", eos_token="<|endoftext|>", unk_token=unknown
    )
    ours, order = adopt(theirs)
    ids, mask = ours.encode_batch(["a 🐱 cat", "café"])
    found = [[order[i] for i in row[seen]] for row, seen in zip(ids, mask, strict=True)]
    assert found == theirs(["a 🐱 cat", "café"])["input_ids"]


def test_clips_own_kind_of_tokenizer_reads_and_writes_the_same(tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(33, 127)]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    write_json(tmp_path / "vocab.json", {piece: i for i, piece in enumerate(pieces)})
    (tmp_path / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    theirs = CLIPTokenizer.from_pretrained(tmp_path)
    ours, order = adopt(theirs, 77)
    ids, mask = ours.encode_batch(["A cat, two!", "dog"])
    found = [[order[i] for i in row[seen]] for row, seen in zip(ids, mask, strict=True)]
    assert found == theirs(["a cat, two!", "dog"])["input_ids"]
    assert (ours.decode(ids[0]), order[0], order[3]) == ("a cat , two !", None, None)  # its [PAD] is its [EOS]; ours is new


@pytest.mark.parametrize("last", [True, False])
def test_a_tokenizer_comes_back_as_it_went(run: Path, last: bool) -> None:
    ours = Tokenizer(run / "tokenizer.json", 32)
    vocabulary = Vocabulary(ours, last)
    back, order = adopt(vocabulary.of_transformers())
    assert back.to_json() == ours.to_json()
    assert order == [vocabulary.id(i) for i in range(len(ours))]


class Spread(Objective):
    """Needs images alone: their embeddings apart from each other."""

    needs = ("image.embedding",)

    def forward(self, p: Pass) -> torch.Tensor:
        return p["image.embedding"].mean(0).square().sum()


class Coloured:
    """Twelve coloured squares with captions that end in ``words``, or none without."""

    address, problems = "coloured:", ()

    def __init__(self, words: str = ""):
        self.words = words

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> Sample:
        image = np.full((20, 20, 3), i * 20, dtype=np.uint8)
        return Sample(str(i), image=image, **({"text": captioned([f"square {i} {self.words}"])} if self.words else {}))

    def fingerprint(self) -> str:
        return self.words

    def split(self, name: str) -> Coloured:
        return self


def test_pictures_without_captions_need_no_words_where_a_tokenizer_comes_along(run: Path, tmp_path: Path) -> None:
    recipe = load_recipe("clip", [*CLIP, "data.image_size=48", "stages.0.objectives={spread: {kind: 'test_start:Spread'}}"])
    with pytest.raises(DiptychError, match="coloured:: no captions to learn from"):
        set_up(recipe, Coloured())
    recipe = recipe.model_copy(update={"weights": str(run)})
    done = train(recipe, tmp_path / "run", Coloured())
    assert done.spent["samples"] == 32
    assert Tokenizer(done.path / "tokenizer.json", 32).to_json() == Tokenizer(run / "tokenizer.json", 32).to_json()


def test_a_resumed_run_keeps_its_words_though_its_captions_have_changed(tmp_path: Path) -> None:
    given = [*CLIP, "data.image_size=48"]
    train(load_recipe("clip", given), tmp_path / "run", Coloured("of the first colour"))
    first = Tokenizer(tmp_path / "run" / "tokenizer.json", 32)
    trainer = Trainer(load_recipe("clip", [*given, "budget=48 samples"]), tmp_path / "run", Coloured("quite another"), resume=True)
    assert trainer.setup.tokenizer.to_json() == trainer.setup.model.tokenizer.to_json() == first.to_json()
    assert trainer.run().spent["samples"] == 48
    other = set_up(load_recipe("clip", given), Coloured("quite another")).tokenizer
    assert other.to_json() != first.to_json()


def test_frozen_weights_of_a_package_that_came_from_a_run_are_saved(tmp_path: Path) -> None:
    small = ["parts.vision={kind: vit, depth: 1, width: 32, heads: 2}", *FAST, "budget=16 samples"]
    learned = train(
        load_recipe("llava-joint", [*small, "parts.lm={kind: random, frozen: false}", "stages.0.lr=0.01"]), tmp_path / "a"
    )
    frozen = [*small, "parts.lm={kind: random, frozen: true}"]

    def weights(path: Path) -> dict[str, torch.Tensor]:
        return TrainedModel.load(path, "cpu").model.part("lm").state_dict()

    def saved(path: Path) -> set[str]:
        return {n for n in load_file(find_checkpoint(path / "checkpoints", "last") / "model.safetensors") if ".lm." in n}

    fresh = train(load_recipe("llava-joint", frozen), tmp_path / "fresh")
    assert not saved(fresh.path)
    second = train(load_recipe("llava-joint", [*frozen, f"weights={learned.path}"]), tmp_path / "b")
    want = weights(learned.path)
    shutil.rmtree(learned.path)
    more = [*frozen, f"weights={learned.path}", "budget=32 samples"]
    for _ in range(2):  # loaded, and after it went on
        found = weights(second.path)
        assert saved(second.path) and found.keys() == want.keys() and all(torch.equal(found[n], want[n]) for n in want)
        assert not all(torch.equal(want[n], x) for n, x in weights(fresh.path).items())
        second = train(load_recipe("llava-joint", more), second.path, resume=True)
