"""Runs that read clips as ``VideoLlavaForConditionalGeneration`` and ``LlavaNextVideoForConditionalGeneration``: what the classes
compute from an export is what the run computes, to 1e-5. The pixels are prepared as the exported file of settings says, in NumPy,
since the video processors of transformers need torchvision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from diptych.config.recipe import load_recipe
from diptych.core.batch import Batch, Images, Texts, Videos
from diptych.core.errors import DiptychError
from diptych.interop import family_for
from diptych.models.vlm import build_model
from diptych.objectives import build_objectives

SAID = ["a big red fox left of two small blue keys", "above the yellow house", "three green hearts"]
SIDE, FRAMES = 32, 3
OWN = "{kind: siglip, width: 32, heads: 2, depth: 2, hidden: 48, patch: 8}"
EACH = f"{{kind: each_frame, frames: {FRAMES}, norm: false}}"
POOLED = f"{{kind: pooled_frames, frames: {FRAMES}, norm: false}}"
LINEAR = f"{{kind: adaptive_pool, frames: {FRAMES}, norm: false, depth: 1}}"
CLASSES = {"video_llava": "VideoLlava", "llava_next_video": "LlavaNextVideo"}


def made_of(connector: str, vision: str = OWN, **more: str) -> tuple[Any, Any, Any]:
    """Recipe, model and objectives of a run that reads clips; every weight has been learned. more: further values of parts."""
    torch.manual_seed(0)
    parts = {"vision": vision, "lm": "{kind: random, fields: {image: video}}", "connector": connector, **more}
    given = [f"parts.{name}={value}" for name, value in parts.items()]
    recipe = load_recipe("video-llava", [*given, "precision=fp32", f"data.image_size={SIDE}"])
    model = build_model(recipe, None, SIDE, SAID)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return recipe, model.eval(), build_objectives(recipe, model)


def written(made: tuple[Any, Any, Any], out: Path) -> tuple[str, Any]:
    """The name of the family, and the class with the weights of the export."""
    import transformers

    out.mkdir()
    family = family_for("transformers", *made)
    family.write(out, *made[1:])
    there = getattr(transformers, family.architecture).from_pretrained(out, dtype=torch.float32).eval()
    assert json.loads((out / "config.json").read_text())["architectures"] == [family.architecture]
    return family.name, there


def prepared(frames: np.ndarray, settings: dict[str, Any]) -> torch.Tensor:
    """Pixels as a video processor makes them of frames that have their size: uint8 [n, height, width, 3] → [n, 3, height, width]."""
    assert settings["crop_size"] == {"height": SIDE, "width": SIDE} and settings["size"] == {"shortest_edge": SIDE}
    assert settings["do_rescale"] and settings["do_normalize"] and settings["rescale_factor"] == pytest.approx(1 / 255)
    x = (frames.astype(np.float64) / 255 - np.array(settings["image_mean"])) / np.array(settings["image_std"])
    return torch.from_numpy(x.transpose(0, 3, 1, 2)).float()


@pytest.mark.parametrize(
    ("connector", "name"),
    [(EACH, "video_llava"), (EACH[:-1] + ", depth: 1}", "video_llava"), (POOLED, "llava_next_video"), (LINEAR, "llava_next_video")],
)
def test_an_export_computes_what_the_run_does(connector: str, name: str, tmp_path: Path) -> None:
    recipe, model, objectives = made_of(connector)
    found, there = written((recipe, model, objectives), tmp_path / "out")
    assert found == name and there.config.video_seq_length == model.part("connector").tokens
    clips = np.random.default_rng(0).integers(0, 256, (len(SAID), FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
    ids, seen = (torch.from_numpy(x) for x in model.tokenizer.encode_batch(SAID))
    owner = torch.arange(len(SAID)).repeat_interleave(FRAMES)
    flat = torch.from_numpy(clips.reshape(-1, SIDE, SIDE, 3).copy()).permute(0, 3, 1, 2)
    videos = Videos(Images(flat, owner), torch.arange(len(flat)).float(), owner)
    ours = model.encode(Batch({"video": videos, "text": Texts(ids, seen, tuple(SAID))}, len(SAID)))["text.logits"]
    settings = json.loads((tmp_path / "out" / "video_preprocessor_config.json").read_text())
    pixels = torch.stack([prepared(clip, settings) for clip in clips])
    tokens = model.part("connector").tokens
    words = torch.cat([ids[:, :1], torch.full((len(ids), tokens), there.config.video_token_id), ids[:, 1:-1]], 1)
    mask = torch.cat([seen[:, :1].expand(-1, 1 + tokens), seen[:, 1:-1]], 1).long()
    with torch.no_grad():
        theirs = there(input_ids=words, attention_mask=mask, pixel_values_videos=pixels).logits
    theirs, real = theirs[:, tokens:, : ours.shape[-1]], seen[:, 1:]
    assert ours[real].std() > 1e-2 and (ours[0, 0] - ours[1, 0]).abs().max() > 1e-4, "the clip matters"
    torch.testing.assert_close(theirs[real], ours[real].detach(), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        backwards = there(input_ids=words, attention_mask=mask, pixel_values_videos=pixels.flip(1)).logits
    assert (backwards[:, tokens:, : ours.shape[-1]][real] - theirs[real]).abs().max() > 1e-4, "the order of frames, too"


def test_the_files_of_the_processor(tmp_path: Path) -> None:
    """Their keys are those of the library's classes, and what they say is the same at each place."""
    from transformers.processing_utils import VideosKwargs
    from transformers.utils import import_utils

    for connector, name in ((EACH, "video_llava"), (POOLED, "llava_next_video")):
        out = tmp_path / name
        written(made_of(connector), out)
        clips = json.loads((out / "video_preprocessor_config.json").read_text())
        whole = json.loads((out / "processor_config.json").read_text())
        kind = CLASSES[name]
        assert whole["processor_class"] == clips.pop("processor_class") == f"{kind}Processor"
        assert whole["video_processor"] == clips and clips.pop("video_processor_type") == f"{kind}VideoProcessor"
        assert set(clips) <= set(VideosKwargs.__annotations__), "settings that the class knows"
        assert clips["num_frames"] == FRAMES and clips["do_sample_frames"] is False
        for same in ("size", "crop_size", "image_mean", "image_std", "resample"):
            assert clips[same] == whole["image_processor"][same], same
        assert (whole["image_token"], whole["video_token"], whole["patch_size"]) == ("<image>", "<video>", 8)
        source = Path(import_utils.__file__).parents[1] / "models" / name
        assert f"class {kind}VideoProcessor(BaseVideoProcessor)" in (source / f"video_processing_{name}.py").read_text()
        words = json.loads((out / "tokenizer.json").read_text())["added_tokens"]
        assert {"<image>", "<video>"} <= {w["content"] for w in words}


@pytest.mark.parametrize(
    ("parts", "why", "remedy"),
    [
        ({"connector": EACH.replace("norm: false", "norm: true")}, "its projector has no norm", "parts.connector.norm=false"),
        ({"connector": EACH[:-1] + ", together: 4}"}, "a token of its own", "parts.connector.together=1"),
        ({"connector": LINEAR.replace("depth: 1", "depth: 2")}, "the same only for one layer", "parts.connector.depth=1"),
        ({"connector": LINEAR[:-1] + ", side: 1}"}, "it averages 2 × 2 patches", "parts.connector.side=2"),
        ({"connector": POOLED[:-1] + ", stride: 4}"}, "4 × 4 become 1 × 1", "parts.connector.stride=2"),
        ({"connector": LINEAR[:-1] + ", time: 2}"}, "does not average over time", "parts.connector.time=3"),
        (
            {"connector": EACH, "vision": "{kind: vit, width: 32, heads: 2, depth: 1, patch: 8}"},
            "its stem",
            "parts.vision.kind=siglip",
        ),
        ({"connector": "{kind: frames_and_mean, frames: 3, norm: false}"}, "it reads all patches", ""),
    ],
)
def test_what_does_not_fit_is_refused_with_the_remedy(parts: dict[str, str], why: str, remedy: str) -> None:
    with pytest.raises(DiptychError) as told:
        family_for("transformers", *made_of(**parts))
    lines = [line for line in str(told.value).split("\n") if why in line]
    assert lines and "reads clips, and the class reads pictures" not in lines[0], str(told.value)
    assert not remedy or f"--set {remedy}" in lines[0], str(told.value)
    if remedy and "vision" not in parts:
        assert family_for("transformers", *made_of(parts["connector"], **{remedy.split("=")[0][6:]: remedy.split("=")[1]}))


def test_a_run_and_its_export(tmp_path: Path) -> None:
    """From training to a directory, with a language model of the run's own words."""
    from jinja2 import Template
    from transformers import AutoTokenizer, VideoLlavaForConditionalGeneration

    import diptych as dp
    from diptych.data.clips import clip_array
    from diptych.inference.export import export

    data = "scenes:clips?actions=all&size=32&concepts=6&colours=4"
    small = {"parts.vision": yaml.safe_load(OWN), "parts.connector.norm": False, "parts.lm.width": 32, "parts.lm.depth": 1, "parts.lm.hidden": 48,
             "stages.0.batch_size": 4, "precision": "fp32", "data.train": data, "data.image_size": SIDE}  # fmt: skip
    run = dp.train("video-llava", budget="8 samples", out=tmp_path / "run", set=small)
    made = export(run.path)
    assert made.architecture == "VideoLlavaForConditionalGeneration" and "8 frames" in (made.path / "README.md").read_text()
    model, there = dp.load(run.path), VideoLlavaForConditionalGeneration.from_pretrained(made.path).eval()
    sample = dp.open_source(data).split("test")[0]
    clip, text = clip_array(sample.fields["video"], "c"), sample.captions[0]
    settings = json.loads((made.path / "video_preprocessor_config.json").read_text())
    pixels = prepared(np.asarray(clip)[1::2], settings)[None]  # the middle of eight equal parts of sixteen frames
    ids = model.model.tokenizer.encode_batch([text])[0][0].tolist()
    said = Template((made.path / "chat_template.jinja").read_text()).render(
        messages=[{"role": "user", "content": [{"type": "video"}]}]
    )
    before = AutoTokenizer.from_pretrained(made.path)(said, add_special_tokens=False)["input_ids"]
    assert before == [ids[0], there.config.video_token_id], "[BOS] and the clip, once"
    words = torch.tensor([[ids[0], *[there.config.video_token_id] * there.config.video_seq_length, *ids[1:-1]]])
    with torch.no_grad():
        logits = there(input_ids=words, pixel_values_videos=pixels).logits[0, -len(ids) + 1 :, : len(model.model.tokenizer)]
    theirs = float(logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None]).sum())
    assert theirs == pytest.approx(float(model.loglikelihood([clip], [text])[0]), abs=1e-4)
