"""videobert, merlot and gexia train, learn, are saved and score."""

from __future__ import annotations

import json

import numpy as np
import pytest

import diptych as dp
from diptych.data.clips import clip_array
from diptych.data.sources import open_source
from launch_fixture import launch

CLIPS = "scenes:clips?actions=all&size=32&concepts=6&colours=4&length=8"  # a whole batch, seen again and again
DATA = {
    "videobert": f"{CLIPS}&clip_frames=8",
    "merlot": f"{CLIPS}&events=4&clip_frames=32",
    "gexia": f"joined:{CLIPS.replace('?', '%3F')}&clip_frames=8?n=3",
}


@pytest.mark.parametrize("name", ["videobert", "merlot", "gexia"])
def test_the_loss_falls_and_pairs_are_scored(name, tmp_path):
    small = {
        f"parts.{part}.{key}": value for part in ("vision", "text") for key, value in (("depth", 1), ("width", 32), ("heads", 2))
    }
    small |= {"precision": "fp32", "data.train": DATA[name], "data.image_size": 32, "checkpoints.seconds": 1000.0}
    stages = 3 if name == "videobert" else 1
    small |= {f"stages.{i}.{key}": value for i in range(stages) for key, value in (("batch_size", 8), ("warmup", 2))}
    if name == "videobert":
        small |= {"parts.time.levels": 1, "parts.time.samples": 32, "stages.0.share": 0.3}
        small |= {"stages.2.objectives.masked_words_and_codes.share": 0.5}  # fewer hidden tokens are a noisy mean
    model = dp.load(dp.train(name, budget="320 samples", out=tmp_path / "run", set=small).path)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    main = [row["loss"] for row in rows if row.get("stage") == "main"]
    assert np.mean(main[-2:]) < main[0] - 0.2, main
    assert "score" in model.capabilities and {"embed_image", "embed_text"} <= model.capabilities
    source = open_source(DATA[name]).split("test")
    clips, texts = [clip_array(source[i].fields["video"], "c") for i in range(3)], [source[i].captions[0] for i in range(2)]
    scores = model.score(clips, texts)
    assert scores.shape == (3, 2) and np.isfinite(scores).all() and np.ptp(scores) > 1e-6
    pairs = model.score(clips, texts, np.array([[2, 1], [0, 1]]))
    np.testing.assert_allclose(pairs, scores[[2, 0], [1, 1]], rtol=1e-3, atol=1e-4)
    again = dp.load(tmp_path / "run")
    np.testing.assert_allclose(again.score(clips, texts), scores, rtol=1e-5, atol=1e-6)
    if name == "videobert":  # the codebook is the run's
        saved, loaded = (m.model.part("time").codebook for m in (model, again))
        assert bool(loaded.fitted) and (loaded.centres(0) == saved.centres(0)).all()


COUPLED = {"merlot": "frame_contrast", "gexia": "granularities"}


def first_losses(path):
    return json.loads((path / "metrics.jsonl").read_text().splitlines()[0])["losses"]


def few(name):
    """Settings of one step of eight clips."""
    small = {
        f"parts.{part}.{key}": value for part in ("vision", "text") for key, value in (("depth", 1), ("width", 32), ("heads", 2))
    }
    return small | {"precision": "fp32", "data.train": DATA[name], "stages.0.batch_size": 8, "budget": "8 samples"}


@pytest.mark.parametrize("name", ["merlot", "gexia"])
def test_pieces_of_a_batch_are_contrasted_as_the_whole(name, tmp_path):
    for micro in (None, 2):
        dp.train(name, out=tmp_path / str(micro), set=few(name) | {"stages.0.micro_batch": micro})
    one, other = (first_losses(tmp_path / str(micro))[COUPLED[name]] for micro in (None, 2))
    assert other == pytest.approx(one, rel=1e-4)


@pytest.mark.slow
def test_two_processes_contrast_what_one_does(tmp_path):
    jobs = [
        [name, str(tmp_path / f"two-{name}"), [f"{k}={v}" for k, v in few(name).items() if k != "precision"]] for name in COUPLED
    ]
    launch(jobs)
    for name, objective in COUPLED.items():
        dp.train(name, out=tmp_path / name, set=few(name))
        assert first_losses(tmp_path / f"two-{name}")[objective] == pytest.approx(
            first_losses(tmp_path / name)[objective], rel=1e-4
        )


@pytest.mark.slow
def test_alignment_tells_right_pairs_from_wrong_ones(tmp_path):
    """VideoBERT on sixteen clips again and again: [CLS] knows which text belongs to which."""
    data = f"{CLIPS.replace('length=8', 'length=16')}&clip_frames=8"
    small = {
        f"parts.{part}.{key}": value for part in ("vision", "text") for key, value in (("depth", 1), ("width", 64), ("heads", 2))
    }
    small |= {f"stages.*.{key}": value for key, value in (("batch_size", 16), ("warmup", 5), ("lr", 3e-3), ("muon_lr", 6e-3))}
    small |= {"precision": "fp32", "data.train": data, "parts.time.samples": 256, "stages.0.share": 0.5}
    model = dp.load(dp.train("videobert", budget="3200 samples", out=tmp_path / "run", set=small).path)
    source = open_source(data).split("train")
    clips, texts = [clip_array(source[i].fields["video"], "c") for i in range(16)], [source[i].captions[0] for i in range(16)]
    scores = model.score(clips, texts)
    assert (np.diag(scores)[:, None] > scores)[~np.eye(16, dtype=bool)].mean() > 0.8
