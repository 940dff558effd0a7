"""Runs with pretrained backbones as ``LlavaForConditionalGeneration``: what the class computes from an export is what the run computes, to 1e-5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.data.sources import open_source
from diptych.exporting import export
from diptych.interop.language import tokenizer_of
from diptych.models.passes import Pass
from diptych.models.pretrained import CausalLM
from diptych.recipe import load_recipe
from diptych.trained import TrainedModel
from diptych.training.loop import train

SAID = "a big red fox left of two small blue keys above the yellow house below three green hearts pink star"
OFTEN = ["zebra crossing quietly", "never said in any scene"] * 9  # pieces that no corpus here needs
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 48, "patch_size": 16}  # fmt: skip


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Language models and towers with random weights, as directories of transformers."""
    from transformers import (
        CLIPConfig,
        CLIPImageProcessorPil,
        CLIPModel,
        SiglipVisionConfig,
        SiglipVisionModel,
        ViTConfig,
        ViTModel,
    )

    root = tmp_path_factory.mktemp("bases")
    for family in ("llama", "gemma3"):
        made = CausalLM.random(700, 32, 2, family=family, texts=[SAID, *OFTEN])  # type: ignore[arg-type]
        loud(made.model).save_pretrained(root / family)
        tokenizer_of(made.tokenizer).save_pretrained(root / family)
    pictures = CLIPImageProcessorPil(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.25, 0.3])
    for name, model in {
        "clip": CLIPModel(
            CLIPConfig(vision_config=SIZES, text_config={"vocab_size": 20, "hidden_size": 32, "num_attention_heads": 2})
        ),
        "siglip": SiglipVisionModel(SiglipVisionConfig(**SIZES)),
        "vit": ViTModel(ViTConfig(**SIZES)),
    }.items():
        loud(model).save_pretrained(root / name)
        pictures.save_pretrained(root / name)
    return root


def loud(model: Any) -> Any:
    """With opinions: nothing uniform, every norm and bias at work."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


def trained_run(bases: Path, out: Path, tower: str, lm: str, *overrides: str) -> Path:
    vision = tower if tower.startswith("{") else f"{{kind: hf, from: 'hf:{bases / tower}', frozen: true}}"
    settings = [f"parts.vision={vision}", f"parts.lm={{kind: hf, from: 'hf:{bases / lm}', frozen: true}}",
                "parts.connector={kind: mlp, norm: false}", "data.train=scenes:small", "precision=fp32", "trackers=[]",
                "budget=24 samples", "stages.0.batch_size=8", "stages.0.warmup=1", "stages.0.lr=1e-2"]  # fmt: skip
    train(load_recipe("llava", [*settings, *overrides]), out)
    return out


def scenes(n: int) -> tuple[list[np.ndarray], list[str]]:
    source = open_source("scenes:small").split("test")
    samples = [source[i] for i in range(n)]
    return [s.image for s in samples], [s.captions[0] for s in samples]  # type: ignore[misc]


def in_float(trained: TrainedModel) -> None:
    """The factor √D of Gemma's word vectors, too: in bf16 it was rounded, as it is where an export is loaded in bf16."""
    for module in trained.model.float().modules():
        if hasattr(module, "scalar_embed_scale"):
            module.embed_scale.fill_(module.scalar_embed_scale)


def ours_and_theirs(trained: TrainedModel, model: Any, processor: Any, n: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits over the run's words, at each place of a caption and its end: [n, T − 1, V]."""
    in_float(trained)
    images, captions = scenes(n)
    texts = trained._text_side(captions)
    with torch.no_grad():
        ours = Pass(trained.model, trained._image_side(images), texts).next_token_logits
        pictures = processor.image_processor([Image.fromarray(i) for i in images], return_tensors="pt")["pixel_values"]
        tokens = trained.model.part("connector").tokens
        words = torch.tensor([trained.model.tokenizer.original(row) for row in texts.ids.tolist()])
        shown = torch.full((n, tokens), model.config.image_token_id)
        ids = torch.cat([words[:, :1], shown, words[:, 1:-1]], 1)
        mask = torch.cat([texts.mask[:, :1].expand(-1, 1 + tokens), texts.mask[:, 1:-1]], 1)
        theirs = model(input_ids=ids, attention_mask=mask.long(), pixel_values=pictures).logits[:, tokens:]
    kept = torch.tensor(trained.model.tokenizer.original(list(range(len(trained.model.tokenizer)))))
    real = texts.mask[:, 1:]
    return ours[real], theirs[..., kept][real]


def opened(path: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    processor = AutoProcessor.from_pretrained(path)
    assert type(processor).__name__ == "LlavaProcessor"
    return model, processor


def same(found: tuple[torch.Tensor, torch.Tensor]) -> None:
    ours, theirs = found
    assert ours.std() > 1e-2
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("tower", "lm", "layer"),
    [("clip", "llama", -1), ("clip", "gemma3", -2), ("siglip", "llama", -2), ("siglip", "gemma3", -1), ("vit", "llama", -1)],
)
def test_an_export_computes_what_the_run_does(bases: Path, tmp_path: Path, tower: str, lm: str, layer: int) -> None:
    run = trained_run(bases, tmp_path / "run", tower, lm, f"parts.vision.layer={layer}")
    trained, made = TrainedModel.load(run, "cpu"), export(run)
    model, processor = opened(made.path)
    assert len(trained.model.tokenizer) < model.config.text_config.vocab_size, "the vocabulary was trimmed"
    same(ours_and_theirs(trained, model, processor))
