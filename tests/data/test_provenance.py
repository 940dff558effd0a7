"""The estimate of carbon, and what is known of terms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diptych.core.errors import DiptychError
from diptych.data.provenance.carbon import Assumptions, Carbon, Clock, of_training
from diptych.data.provenance.terms import NOT_STATED, card_of, counted_terms, curated_by, local, of_rows, of_weights, terms_of


def test_the_estimate_is_its_formula() -> None:
    made = Carbon(7200.0, 1800.0, Assumptions(watts=12, gpu_watts=300, overhead=1.25, intensity=0.2), "in a test.")
    joules = (7200 * 12 + 1800 * 300) * 1.25
    assert made.energy == pytest.approx(joules / 3_600_000) and made.emitted == pytest.approx(joules / 3_600_000 * 0.2)
    text = made.markdown()
    for part in ("7,200 CPU-s × 12 W", "1,800 GPU-s × 300 W", "× 1.25 / 3.6e6", "0.2 kg", "Measured: in a test.", "43.5 g CO2e"):
        assert part in text
    assert made.plain()["assumed"] == {"watts": 12, "gpu_watts": 300, "overhead": 1.25, "intensity": 0.2}


def test_assumptions_can_be_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WATTS", "GPU_WATTS", "OVERHEAD", "INTENSITY"):
        monkeypatch.delenv(f"DIPTYCH_{name}", raising=False)
    assert Assumptions.stated() == Assumptions()
    monkeypatch.setenv("DIPTYCH_INTENSITY", "0.05")
    assert Assumptions.stated(watts=3).intensity == 0.05 and Assumptions.stated(intensity=0.3).intensity == 0.3
    assert Assumptions.stated(watts=3).watts == 3
    for name, value, words in (
        ("watts", -1.0, "--watts -1"),
        ("overhead", 0.5, "--overhead 0.5"),
        ("intensity", float("nan"), "finite"),
    ):
        with pytest.raises(DiptychError, match=words):
            Assumptions.stated(**{name: value})
    monkeypatch.setenv("DIPTYCH_INTENSITY", "low")
    with pytest.raises(DiptychError, match="DIPTYCH_INTENSITY=low"):
        Assumptions.stated()


def test_time_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Assumptions()
    assert of_training({}, {}, plain) is None
    old = of_training({"seconds": 10.0}, {"threads": 4, "device": "cpu"}, plain)
    assert old is not None and (old.cpu_seconds, old.gpu_seconds) == (40.0, 0.0) and "all 4 threads" in old.measured
    new = of_training({"seconds": 10.0, "cpu_seconds": 13.0, "processes": 2}, {"threads": 4, "device": "cuda:0"}, plain)
    assert new is not None and (new.cpu_seconds, new.gpu_seconds) == (26.0, 20.0)
    clock = Clock(5.0)
    monkeypatch.setattr("diptych.data.provenance.carbon.cpu_seconds", lambda: clock.began + 2.0)
    assert clock.seconds() == 7.0  # a resumed run goes on from what it had spent


def test_terms_are_those_that_a_file_states(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (tmp_path / "LICENSE").write_text("of a program around the pictures")
    address = f"folder:{photos}?split=train"
    assert terms_of(address).text == NOT_STATED  # a file of a directory above is not of the pictures
    (photos / "LICENCE.txt").write_text("\n  CC BY 4.0, by Ada\nmore")
    assert (terms_of(address).text, terms_of(address).by) == ("CC BY 4.0, by Ada", "LICENCE.txt")
    (photos / "README.md").write_text("---\ntags: [x]\nlicense: cc0-1.0\n---\nlicense: nothing")
    assert (terms_of(address).text, terms_of(address).by) == ("cc0-1.0", "README.md")
    assert of_weights(f"hf:{photos}").text == "cc0-1.0"
    assert "OpenMoji" in terms_of("scenes:small?size=32").text
    assert terms_of("folder:nowhere").text == NOT_STATED and terms_of("wds:https://host/{0..1}.tar").text == NOT_STATED


def test_the_place_of_data(tmp_path: Path) -> None:
    (tmp_path / "kept" / "data").mkdir(parents=True)
    pattern = f"parquet:{tmp_path}/kept/data/*.parquet"
    assert local(pattern) == tmp_path / "kept" / "data" == card_of(pattern)
    made = {"plan": "strict", "data": "folder:raw", "rows": 10, "kept": 4}
    (tmp_path / "kept" / "manifest.json").write_text(json.dumps(made))
    assert card_of(pattern) == tmp_path / "kept"  # the sheet of a curated set is next to its data
    assert "`diptych curate strict` from `folder:raw`: 4 of 10 rows" in curated_by(pattern)
    assert curated_by(f"folder:{tmp_path}") == "" and local("scenes:small") is None


def test_terms_of_rows_are_counted() -> None:
    counts = of_rows(['{"License": "cc-by"}', '{"license": "cc-by", "rights": "x"}', '{"rights": "mine"}', "{}", None])
    assert counts == {"cc-by": 2, "mine": 1, "": 2}
    assert counted_terms(counts) == ["cc-by: 2 rows", "mine: 1 row", "none stated: 2 rows"]
    assert counted_terms({"": 3}) == []
    many = counted_terms({f"t{i}": 1 for i in range(11)})
    assert len(many) == 9 and many[-1] == "3 other texts: 3 rows"
