"""How the pixels of a vision model of transformers are normalised, where its directory says so, says little, or says nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.core.errors import DiptychError
from diptych.core.files import write_json
from diptych.models.pretrained.hub import statistics_of
from diptych.models.pretrained.tower import VisionTower

CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32}


def saved(path: Path, says: dict[str, Any] | None, kind: str = "CLIPVision") -> Path:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZES, patch_size=16)
    getattr(transformers, f"{kind}Model")(config).eval().save_pretrained(path)
    if says is not None:
        crop = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        write_json(path / "preprocessor_config.json", {"image_processor_type": "CLIPImageProcessor", **crop, **says})
    return path


@pytest.mark.parametrize(
    "says",
    [
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]},
        {},
        {"image_std": [0.4, 0.5, 0.6]},
        {"do_normalize": False, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]},
        {"do_rescale": False, "image_mean": [100.0] * 3, "image_std": [50.0] * 3},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
    ],
)
def test_a_tower_sees_what_its_processor_gives(tmp_path: Path, says: dict[str, Any]) -> None:
    from transformers import AutoImageProcessor, CLIPVisionModel

    path = saved(tmp_path / "clip", says)
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    pixels = AutoImageProcessor.from_pretrained(path)(images=Image.fromarray(picture), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        theirs = CLIPVisionModel.from_pretrained(path).eval()(pixel_values=pixels.float()).last_hidden_state
        ours, _ = VisionTower.load(f"hf:{path}")(torch.from_numpy(picture).permute(2, 0, 1)[None] / 127.5 - 1)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("kind", "mean"), [("CLIPVision", CLIP[0]), ("SiglipVision", [0.5] * 3), ("ViT", [0.5] * 3)])
def test_without_a_file_a_model_has_what_its_class_has_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, mean: list[float]
) -> None:
    found, _ = statistics_of(str(saved(tmp_path / "model", None, kind)))
    assert found == pytest.approx(mean, abs=1e-6)
    assert "has no preprocessor_config.json: pixels are normalised as" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["bert", "dinov2"])
def test_a_model_of_unknown_pixels_is_refused(tmp_path: Path, kind: str) -> None:
    """DINOv2 borrows the processor of BiT, but not its mean."""
    write_json(tmp_path / "config.json", {"model_type": kind})
    with pytest.raises(
        DiptychError, match=r"how its pixels were normalised is unknown; add a preprocessor_config.json with image_mean"
    ):
        statistics_of(str(tmp_path))
