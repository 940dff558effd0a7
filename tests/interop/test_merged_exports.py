"""Exports of runs with adapters: what the class computes is what the run computes with its adapters, to 1e-5; transformers' own
pipeline writes the same words; and the classes that an engine knows are named in the docs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import talk_fixture
from diptych.api import load
from diptych.config.recipe import load_recipe
from diptych.inference.export import export
from diptych.inference.run import TrainedModel
from diptych.interop import families_of
from diptych.training.loop import train

ROOT = Path(__file__).parents[2]
TEXTS = ["a red fox", "two green keys to the left of a big yellow house"]
SIZES = [f"parts.{p}.{k}" for p in ("vision", "text") for k in ("depth=1", "width=32", "heads=2", "hidden=48")]
SHORT = ["budget=32 samples", "stages.*.batch_size=16", "stages.*.lr=0.02", "stages.*.ema=0", "precision=fp32", "trackers=[]",
         "data.tokenizer.vocab_size=320", "parts.vision.patch=16"]  # fmt: skip
KINDS = ("clip", "siglip")


def pictures(size: int, n: int = 3) -> list[np.ndarray]:
    return [np.random.default_rng(i).integers(0, 256, (size, size, 3), dtype=np.uint8) for i in range(n)]


@pytest.mark.parametrize("way", ["lora", "dora"])
@pytest.mark.parametrize("kind", KINDS)
def test_merged_towers_are_the_run(kind: str, way: str, tmp_path: Path) -> None:
    parts = [f"parts.{part}.kind={kind}" for part in ("vision", "text")]
    adapters = f"adapters={{vision: {{kind: {way}, rank: 2}}, text: {{kind: {way}, rank: 3}}}}"
    frozen = ["parts.vision.frozen=true", "parts.text.frozen=true", "stages.0.train=[adapters.vision, adapters.text]"]
    recipe = load_recipe(kind, [*parts, *SIZES, *SHORT, "embed_dim=32", adapters, *frozen])
    train(recipe, tmp_path / "run")
    ours = TrainedModel.load(tmp_path / "run", "cpu")
    images = pictures(ours.model.image_size)
    image, text = ours.embed_image(images), ours.embed_text(TEXTS)
    for adapter in ours.model.adapters.values():
        assert all(p.abs().max() > 0 for p in adapter.own())  # type: ignore[operator]
    there = load(f"hf:{export(tmp_path / 'run').path}", "cpu")
    np.testing.assert_allclose(there.embed_image(images), image, atol=1e-5)
    np.testing.assert_allclose(there.embed_text(TEXTS), text, atol=1e-5)
    weights = (tmp_path / "run" / "export" / "transformers" / "model.safetensors").read_bytes()
    assert b"lora" not in weights[: int.from_bytes(weights[:8], "little") + 8]


def test_the_pipeline_of_transformers_writes_what_a_llava_run_writes(tmp_path: Path) -> None:
    """A run with adapters in its language model, exported whole."""
    from PIL import Image
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel, pipeline

    from diptych.interop.families.language import tokenizer_of
    from diptych.models.pretrained import CausalLM

    made = CausalLM.random(500, 32, 2, family="llama", texts=["a big red fox left of two small blue keys", "describe the picture."])
    talk_fixture.loud(made.model).save_pretrained(tmp_path / "lm")
    tokenizer_of(made.tokenizer).save_pretrained(tmp_path / "lm")
    sizes = {**talk_fixture.LITTLE, "image_size": 32, "patch_size": 16}
    talk_fixture.loud(CLIPVisionModel(CLIPVisionConfig(**sizes))).save_pretrained(tmp_path / "tower")
    CLIPImageProcessorPil().save_pretrained(tmp_path / "tower")
    recipe = load_recipe("llava", [
        f"parts.vision={{kind: hf, from: 'hf:{tmp_path / 'tower'}', frozen: true}}", f"parts.lm={{kind: hf, from: 'hf:{tmp_path / 'lm'}', frozen: true}}",
        "parts.connector={kind: mlp, norm: false}", "adapters={lm: {kind: lora, rank: 2}}", "stages.0.train=[connector, adapters.lm]",
        "data.image_size=32", "budget=16 samples", "stages.0.batch_size=8", "stages.0.lr=0.02", "precision=fp32", "trackers=[]",
    ])  # fmt: skip
    train(recipe, tmp_path / "run")
    ours, place = TrainedModel.load(tmp_path / "run", "cpu"), export(tmp_path / "run").path
    (picture,) = pictures(32, 1)
    (answer,) = ours.generate([picture], max_tokens=8)
    talk = pipeline("image-text-to-text", model=str(place))
    asked = [{"role": "user", "content": [{"type": "image", "image": Image.fromarray(picture)}]}]
    written: Any = talk(text=asked, max_new_tokens=8, return_full_text=False, generate_kwargs={"do_sample": False})
    assert written[0]["generated_text"].strip() == answer and answer


def test_the_docs_say_of_every_class_whether_vllm_lists_it(tmp_path: Path) -> None:
    """Every class that runs are exported as is in the table, and the classes of tuned models are in its row."""
    page = (ROOT / "docs" / "exporting.md").read_text(encoding="utf-8").partition("## Engines that serve exports")[2]
    listed = {name: row[1].strip() for row in (line.split("|")[1:] for line in page.splitlines()) if len(row) > 2
              for name in re.findall(r"`(\w+)`", row[0])}  # fmt: skip
    exported = {family.architecture for family in families_of("transformers")}
    assert exported <= set(listed) and set(listed.values()) == {"yes", "no"}
    for name in ("llava", "qwen2_5_vl", "idefics3", "gemma3"):
        config = json.loads((talk_fixture.FAMILIES[name](tmp_path / name) / "config.json").read_text())
        assert listed[config["architectures"][0]] == "yes"
