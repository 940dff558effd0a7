"""Vision towers of transformers alone, as models that embed images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import diptych as dp
from diptych.core.errors import DiptychError
from foreign_fixture import VISION, images


def saved(path: Path, kind: str) -> Path:
    torch.manual_seed(0)
    small = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "embedding_size": 8}
    config = {
        "ViTForImageClassification": lambda: transformers.ViTConfig(**VISION),
        "Dinov2Model": lambda: transformers.Dinov2Config(**VISION),
        "ResNetModel": lambda: transformers.ResNetConfig(**small),
        "ConvNextModel": lambda: transformers.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
        "CLIPVisionModel": lambda: transformers.CLIPVisionConfig(**VISION),
        "SiglipVisionModel": lambda: transformers.SiglipVisionConfig(**VISION),
    }[kind]()
    getattr(transformers, kind)(config).eval().save_pretrained(path)
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(path)
    return path


@pytest.mark.parametrize(
    "kind", ["ViTForImageClassification", "Dinov2Model", "ResNetModel", "ConvNextModel", "CLIPVisionModel", "SiglipVisionModel"]
)
def test_a_vision_tower_embeds_images(tmp_path: Path, kind: str) -> None:
    path = saved(tmp_path / "m", kind)
    model = dp.load(f"hf:{path}?batch=2")
    found = model.embed_image(images(3))
    assert model.capabilities == {"embed_image"} and np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    processor = transformers.AutoImageProcessor.from_pretrained(path)
    pixels = processor([transformers.image_utils.PIL.Image.fromarray(i) for i in images(3)], return_tensors="pt")
    with torch.no_grad():
        out = transformers.AutoModel.from_pretrained(path).eval()(**pixels)
    expected = out.last_hidden_state[:, 0] if kind.startswith(("ViT", "Dino")) else out.pooler_output.flatten(1)
    expected = torch.nn.functional.normalize(expected, dim=-1).numpy()
    assert np.allclose(found, expected, atol=1e-5)
    again = dp.load(f"hf:{path}").embed_image(images(3))  # nothing random, such as a pooling layer that the file lacks
    assert np.allclose(found, again, atol=1e-5)


def test_a_vision_tower_scores_no_texts(tmp_path: Path) -> None:
    path = saved(tmp_path / "m", "Dinov2Model")
    with pytest.raises(DiptychError, match="cannot score"):
        dp.load(f"hf:{path}").score(images(1), ["a"])
    with pytest.raises(DiptychError, match="remove score"):
        dp.load(f"hf:{path}?score=similarity")
