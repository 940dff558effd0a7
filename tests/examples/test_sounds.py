"""examples/sounds: a modality that the package does not know, from source to recall."""

from __future__ import annotations

import numpy as np
import pytest

import diptych as dp
from diptych.core.errors import DiptychError
from diptych.data.sources import open_source
from examples_fixture import alone_and_in_two, little, same_in_pieces, use

RECIPE = use("sounds")
import sounds  # noqa: E402

FEW = "sounds:Sounds:tones?samples=1000"  # the tokenizer is learned from all that there are, up to 4,000


def test_the_source_is_drawn_from_part_and_number_alone():
    source = open_source("sounds:Sounds:tones").split("test")
    assert source[3] is not source[3] and source[3].id == "test/3"
    np.testing.assert_array_equal(source[3].fields["sound"], source[3].fields["sound"])
    assert not np.array_equal(source[3].fields["sound"], source.split("train")[3].fields["sound"])
    assert source[3].fields["sound"].shape == (sounds.RATE,) and source[3].fields["sound"].dtype == np.int16


def test_a_pitch_is_where_the_spectrum_says():
    for name, pitch in sounds.PITCHES.items():
        found = next(
            s for s in map(open_source("sounds:Sounds:").__getitem__, range(400)) if s.captions[0] == f"one {name} flute note"
        )
        peak = np.abs(np.fft.rfft(found.fields["sound"])).argmax()  # one second: a bin is one hertz
        assert abs(12 * np.log2(peak / pitch)) < 1.7


def test_micro_batches_change_nothing():
    same_in_pieces(little(RECIPE, f"data.train={FEW}"), 4)


def test_a_missing_field_is_named(tmp_path):
    with pytest.raises(DiptychError, match="sound"):
        dp.train(RECIPE, data="scenes:small", budget="16 samples", out=tmp_path)


def test_a_short_run_learns_and_goes_on(tmp_path):
    out, set_ = tmp_path / "run", {"parts.sound.depth": 1, "stages.0.batch_size": 32, "stages.0.warmup": 10, "stages.0.ema": 0.9}
    first = dp.train(RECIPE, data=FEW, budget="64 samples", out=out, set=set_)
    assert first.spent["steps"] == 2
    run = dp.train(RECIPE, budget="4k samples", out=out, set=set_, resume=True)
    assert run.spent["steps"] == 125
    assert dp.load(out).capabilities == set(), "it scores no images"
    found = sounds.recall(str(out))
    assert min(found) >= 0.05, found  # chance is 0.01


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path):
    alone_and_in_two("sounds", tmp_path)
