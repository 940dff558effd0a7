"""What cannot work is refused before training, with the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from torch import nn

import diptych as dp
from diptych.config.recipe import load_recipe
from diptych.core.batch import Tokens
from diptych.core.errors import DiptychError
from diptych.core.graph import provides
from diptych.core.sample import Sample
from diptych.models.build import Build
from diptych.models.part import Part
from diptych.training.start.setup import set_up

SMALL = ["precision=fp32", *(f"parts.{p}.{k}" for p in ("vision", "text") for k in ("depth=1", "width=32", "heads=2"))]


class SecondEmbedding(Part):
    """Provides what the shared space provides already."""

    def __init__(self, build: Build):
        super().__init__()
        self.width = build.embed_dim
        self.layer = nn.Linear(build.width_of("vision"), self.width)

    @provides("image.embedding", "image.tokens")
    def embed(self, tokens: Tokens) -> Any:
        return self.layer(tokens.pooled)


class Captionless:
    """Pictures without texts."""

    address = "captionless"
    problems: list[Any] = []  # noqa: RUF012

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Sample:
        return Sample(str(index), image=np.full((32, 32, 3), index, np.uint8))

    def captions(self, index: int) -> list[str]:
        return ["a word"]

    def split(self, name: str) -> Captionless:
        return self

    def fingerprint(self) -> str:
        return "0"


def refused(recipe: str, overrides: list[str], source: Any = None) -> str:
    with pytest.raises(DiptychError) as error:
        set_up(load_recipe(recipe, [*SMALL, *overrides]), source)
    return str(error.value)


OWN = f"parts.own={{kind: '{__name__}:SecondEmbedding'}}"


def test_two_providers_of_one_encoding() -> None:
    message = refused("clip", [OWN])
    assert "own, space all provide 'image.embedding'" in message or "space, own all provide 'image.embedding'" in message
    assert "encodings: {'image.embedding': space}" in message and "stages.0.objectives.info_nce" in message


def test_a_provider_named_by_the_recipe_is_taken() -> None:
    setup = set_up(load_recipe("clip", [*SMALL, OWN, "encodings={image.embedding: own}"]))
    assert setup.model.graph.plain("image.embedding").part == "own"
    message = refused_recipe(["encodings={image.embedding: owm}"])
    assert "the recipe has no part 'owm'" in message


def refused_recipe(overrides: list[str]) -> str:
    with pytest.raises(DiptychError) as error:
        load_recipe("clip", overrides)
    return str(error.value)


def test_a_field_that_no_source_gives(tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match="read the field 'text', which captionless does not have.*take another --data"):
        from diptych.training.loop import train

        train(load_recipe("clip", [*SMALL, "budget=8 samples", "stages.0.batch_size=4"]), tmp_path / "run", Captionless())
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_an_encoding_that_nothing_provides_names_the_part_to_add() -> None:
    message = refused("clip", ["stages.0.objectives.next_token=1"])
    assert "stages.0.objectives.next_token needs 'text.logits': nothing provides 'text.logits'" in message
    assert "add a part decoder or lm" in message and "parts: vision, text, space" in message


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["parts.text={kind: minilm}", "adapters.text={kind: prompt}"],
            ("MiniLM", "has no place for prompt tokens", "transformer towers"),
        ),
        (["adapters.text={kind: prompt, tokens: 64}"], ("leave no room for words", "data.tokenizer.max_length")),
        (["adapters.vision={kind: prompt, words: a photo}"], ("a vision tower has no words", "set tokens")),
        (["adapters.vision={kind: lora, targets: [nothing]}"], ("adapters.vision", "nothing")),
        (["adapters.vision={kind: lorra}"], ("there is no adapter 'lorra'", "did you mean 'lora'")),
        (["adapters.vision={kind: lora, rang: 2}"], ("adapters.vision: unknown option 'rang'", "did you mean 'rank'")),
    ],
)
def test_an_adapter_without_a_place(overrides: list[str], words: tuple[str, ...]) -> None:
    overrides = [*overrides, "embed_dim=32"]
    small = [o for o in SMALL if not (o.startswith("parts.text.") and "minilm" in overrides[0])]
    with pytest.raises(DiptychError) as error:
        set_up(load_recipe("clip", [*small, *overrides]))
    assert all(word in str(error.value) for word in words), error.value


def test_an_adapter_of_no_part() -> None:
    assert "adapters.visoin: the recipe has no part 'visoin'; did you mean 'vision'?" in refused_recipe(
        ["adapters.visoin={kind: lora}"]
    )
    assert "stages.0.train: the recipe has no part 'adapters.text'" in refused_recipe(["stages.0.train=[adapters.text]"])


def test_a_teacher_that_does_not_fit(tmp_path: Path) -> None:
    few = ["budget=8 samples", "stages.0.batch_size=8"]
    run = dp.train("clip", out=tmp_path / "run", set=[*SMALL, *few, "data.image_size=32", "data.tokenizer.vocab_size=300"]).path
    assert "teachers.ema.of: the recipe has no part 'visoin'; did you mean 'vision'?" in refused(
        "clip", ["teachers.ema={of: [visoin]}"]
    )
    assert "there is no run at 'nowhere'" in refused("clip", ["teachers.big={from: nowhere}"])
    message = refused("clip", [f"teachers.big={{from: {run}}}", "data.image_size=48"])
    assert "reads images of 32 pixels, this model of 48; set data.image_size=32" in message
    message = refused("clip", [f"teachers.big={{from: {run}}}", "data.image_size=32", "data.tokenizer.vocab_size=400"])
    assert "its token ids mean other words" in message and f"weights: {run}?parts=text" in message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stages.0.optimizer=adamm", "there is no optimizer 'adamm'; did you mean 'adamw'?"),
        ("stages.0.schedule=cosin", "there is no schedule 'cosin'; did you mean 'cosine'?"),
        ("data.tokenizer.kind=bpee", "there is no tokenizer 'bpee'; did you mean 'bpe'?"),
        ("score=likelyhood", "there is no score 'likelyhood'; did you mean 'likelihood'?"),
        ("score=late_interaction", "needs the objective late_interaction"),
        ("score=likelihood", "score: likelihood cannot be computed: nothing provides 'text.logits'"),
        ("data.fields={sound: no.such:Field}", ""),
    ],
)
def test_names_of_open_registries(override: str, words: str) -> None:
    if words:
        assert words in refused("clip", [override])
    else:
        assert load_recipe("clip", [override]).data.fields == {"sound": "no.such:Field"}  # read only where an objective needs it


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(load_recipe("clip").to_yaml().replace("format: 4", "format: 5"))
    with pytest.raises(DiptychError, match="written by a newer Diptych .format 5; this one reads up to 4.; upgrade"):
        load_recipe(str(path))


def test_a_saved_run_of_an_older_format_keeps_the_options_that_it_was_trained_with(tmp_path: Path) -> None:
    """maskvlm hid [EOS] like a word, and nova regularised the tower, up to format 2; up to format 3 maskvlm learned normalised
    patches. A recipe that somebody writes is today's.
    """
    for name, objective, key, before, now in (
        ("maskvlm", "masked_words", "end", True, False),
        ("flava", "masked_text", "end", True, False),
        ("nova", "text_prediction", "regularise", "tower", "joint"),
        ("nova", "text_prediction", "local", 0, 6),
    ):
        recipe = load_recipe(name)
        saved = tmp_path / "recipe.yaml"
        for number in ("format: 2", ""):
            saved.write_text(recipe.to_yaml().replace("format: 4", number))
            read = load_recipe(str(saved))
            assert read.format == 4
            assert read.stages[-1].objectives[objective].model_dump()[key] == before
        saved.write_text(recipe.to_yaml())
        assert load_recipe(str(saved)).stages[-1].objectives[objective].model_dump().get(key, now) == now
    for name, objective, key, before in (
        ("maskvlm", "masked_patches", "loss", "l2"),
        ("maskvlm", "masked_patches", "normalise", True),
        ("flava", "masked_both", "text_share", 0.3),
    ):
        tree = yaml.safe_load(load_recipe(name).to_yaml())
        tree["stages"][-1]["objectives"][objective] = {"weight": 1.0}
        for number in (3, 2):
            saved.write_text(yaml.safe_dump(tree | {"format": number}))
            assert load_recipe(str(saved)).stages[-1].objectives[objective].options[key] == before
        saved.write_text(yaml.safe_dump(tree))
        assert key not in load_recipe(str(saved)).stages[-1].objectives[objective].options
