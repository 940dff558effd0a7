"""What a frozen tower says of an image is computed once, and is the same as if it had been computed each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from batch_fixture import batch_of
from diptych.config.recipe import load_recipe
from diptych.core.batch import Tokens
from diptych.models.vision.features import LIMIT, Features, fits
from diptych.training.start.setup import set_up


def encode(pixels: torch.Tensor) -> Tokens:
    x = pixels.flatten(1).float()
    return Tokens(x[:, None] * 2, x)


def test_images_are_known_by_their_pixels() -> None:
    features, asked = Features(), []
    pixels = torch.randint(0, 256, (3, 3, 2, 2), dtype=torch.uint8)

    def counted(x: torch.Tensor) -> Tokens:
        asked.append(len(x))
        return encode(x)

    first = features(pixels[[0, 1, 0]], counted)
    again = features(pixels[[1, 2]], counted)
    assert asked == [2, 1] and len(features) == 3  # one image twice in a batch is computed once
    torch.testing.assert_close(first.tokens, encode(pixels[[0, 1, 0]]).tokens)
    torch.testing.assert_close(again.pooled, encode(pixels[[1, 2]]).pooled)
    changed = pixels[:1].clone()
    changed[0, 0, 0, 0] ^= 1
    features(changed, counted)
    assert asked == [2, 1, 1]


def test_no_more_is_remembered_than_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fits(LIMIT // (17 * 8 * 4), 16, 8) and not fits(1 + LIMIT // (17 * 8 * 4), 16, 8)
    monkeypatch.setattr("diptych.models.vision.features.LIMIT", 2 * 96)  # an image of this test takes 96 bytes
    features, pixels = Features(), torch.arange(36, dtype=torch.uint8).reshape(3, 3, 2, 2)
    for image in pixels:
        features(image[None], encode)
    assert len(features) == 2
    torch.testing.assert_close(features(pixels, encode).pooled, encode(pixels).pooled)


SMALL = ["data.train=openmoji:noflags?size=32", "parts.lm.kind=random", "stages.0.batch_size=8"]


def test_only_a_tower_that_never_changes_is_remembered() -> None:
    frozen = set_up(load_recipe("llava", [*SMALL, "parts.vision={kind: vit, depth: 1, frozen: true}"]))
    learns = set_up(load_recipe("llava", [*SMALL, "parts.vision={kind: vit, depth: 1, frozen: false}"]))
    endless = set_up(load_recipe("llava", [*SMALL, "data.train=scenes:small", "parts.vision={kind: vit, depth: 1, frozen: true}"]))
    assert frozen.model.features is not None and learns.model.features is None and endless.model.features is None
    model = frozen.model.eval()
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    plain = model.part("vision")(pixels / 127.5 - 1, None).tokens
    for _ in range(2):
        torch.testing.assert_close(model.encode(batch_of(pixels=pixels))["image.tokens"].tokens, plain)
    assert len(frozen.model.features) == 2


@pytest.mark.parametrize("adapter", ["kind: lora", "kind: prompt, tokens: 2"])
def test_a_frozen_tower_with_an_adapter_is_not_remembered(adapter: str) -> None:
    tower = "parts.vision={kind: vit, depth: 1, frozen: true}"
    assert set_up(load_recipe("llava", [*SMALL, tower])).model.features is not None
    assert set_up(load_recipe("llava", [*SMALL, tower, f"adapters.vision={{{adapter}}}"])).model.features is None


def test_remembering_changes_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six epochs of sixteen drawings, with and without: the same weights, to the rounding of other batch sizes."""
    import diptych as dp

    rows = "\n".join(f'{{"image": "{i}.png", "caption": "thing {i}"}}' for i in range(16))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "captions.jsonl").write_text(rows)
    from PIL import Image

    for i in range(16):
        Image.effect_noise((32, 32), 10 + 10 * i).convert("RGB").save(tmp_path / "data" / f"{i}.png")
    small: dict[str, Any] = {"parts.lm.kind": "random", "parts.vision": {"kind": "vit", "depth": 1, "frozen": True}}
    small |= {"stages.0.batch_size": 4, "precision": "fp32"}

    def weights(name: str) -> dict[str, torch.Tensor]:
        run = dp.train("llava-joint", data=f"folder:{tmp_path / 'data'}", budget="72 samples", out=tmp_path / name, set=small)
        return dp.load(run.path).model.part("connector").state_dict()

    kept = weights("kept")
    monkeypatch.setattr("diptych.models.vlm.fits", lambda *_: False)
    for name, value in weights("plain").items():
        torch.testing.assert_close(kept[name], value, atol=1e-5, rtol=1e-4)
