"""examples/video_contrast: frames in order, what the controls cannot know, and a short run that learns."""

from __future__ import annotations

import random

import pytest
import torch

import diptych as dp
from clips_fixture import Clips
from diptych.core.batch import Batch, Images, Tokens, Videos
from examples_fixture import alone_and_in_two, little, same_in_pieces, use

RECIPE = use("video_contrast")
import video_contrast  # noqa: E402

SMALL = "clips_fixture:Clips:"
CLIPS = f"data.train='{SMALL}'"


def frames_of(lengths, width):
    torch.manual_seed(0)
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    n = len(owner)
    x = torch.randn(n, width)
    return Tokens(x[:, None], x), Videos(Images(torch.zeros(n, 3, 8, 8), owner), torch.arange(n).float(), owner)


def part(sees="all"):
    return little(RECIPE, CLIPS, f"parts.time.sees={sees}").model.part("time").eval()


def test_clips_of_unlike_lengths_do_not_see_each_other():
    time, lengths = part(), [4, 1, 3]
    frames, video = frames_of(lengths, time.width)
    together, start = time.read(frames, video), 0
    for b, n in enumerate(lengths):
        rows = torch.arange(start, start + n)
        owner = torch.zeros(n, dtype=torch.long)
        alone = time.read(frames[rows], Videos(Images(torch.zeros(n, 3, 8, 8), owner), video.seconds[rows], owner))
        torch.testing.assert_close(together.pooled[b], alone.pooled[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(together.tokens[b, :n], alone.tokens[0], atol=1e-5, rtol=1e-4)
        start += n


@pytest.mark.parametrize(("sees", "changes"), [("all", True), ("one", False), ("unordered", False)])
def test_only_the_order_of_frames_tells_a_direction(sees, changes):
    time = part(sees)
    frames, video = frames_of([3, 3], time.width)
    turned = frames[torch.tensor([2, 1, 0, 5, 4, 3])]
    change = (time.read(frames, video).pooled - time.read(turned, video).pooled).abs().max()
    assert (change > 1e-2) == changes and (changes or change < 1e-5)


def test_captions_are_turned_round():
    assert video_contrast.reversed_caption("a red disc moves to the left") == "a red disc moves to the right"
    assert video_contrast.reversed_caption("one thing moves up, one down") == "one thing moves down, one up"


def test_the_middle_of_a_clip_shows_no_direction():
    clips, ways = Clips(frames=3, samples=50), set()
    for i in range(50):
        sample = clips[i]
        ways.add(sample.captions[0].split()[-1])
        assert len(sample.fields["video"].frames) == 3
    assert ways == {"left", "right", "up", "down"}


def test_micro_batches_change_nothing():
    same_in_pieces(little(RECIPE, CLIPS), 4)


def test_the_tower_reads_the_frames_of_a_batch():
    setup = little(RECIPE, CLIPS)
    model = setup.model.eval()
    field = video_contrast.VideoField("video", model.image_size)
    clips = field.collate(
        [
            video_contrast.Draw(0, i, s, {"video": field.fit(s, random.Random)})
            for i, s in ((0, setup.source[0]), (1, setup.source[1]))
        ]
    )
    p = model.encode(Batch({"video": clips}, 2))
    assert p["video.frames.tokens"].pooled.shape[0] == 8 and p["video.embedding"].shape == (2, model.embed_dim)


def test_a_short_run_learns_and_goes_on(tmp_path):
    set_ = {"stages.0.batch_size": 32, "stages.0.warmup": 10, "stages.0.ema": 0.9, "parts.vision.depth": 1}
    out = tmp_path / "run"
    dp.train(RECIPE, data=SMALL, budget="64 samples", out=out, set=set_)
    run = dp.train(RECIPE, out=out, set={**set_, "budget": "4k samples"}, resume=True)
    assert run.spent["steps"] == 125
    found = video_contrast.judge(str(out), moving=50)
    assert min(found["text of a clip"], found["clip of a text"]) >= 0.1, found  # chance is 0.01


@pytest.mark.slow
@pytest.mark.parametrize("sees", ["all", "one", "unordered"])
def test_only_frames_in_order_tell_directions(tmp_path, sees):
    set_ = {"stages.0.batch_size": 64, "parts.time.sees": sees}
    data = f"{SMALL}?frames=5" if sees == "one" else SMALL  # of four frames none is the middle: the third is half a step after it
    dp.train(RECIPE, data=data, budget="12k samples", out=tmp_path / "run", set=set_)
    found = video_contrast.judge(str(tmp_path / "run"))
    assert found["direction"] > 0.9 if sees == "all" else 0.4 < found["direction"] < 0.6, found


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path):
    alone_and_in_two("video_contrast", tmp_path, data=SMALL)
