"""What ``diptych choose`` keeps between commands, and when it may not: other pictures, other weights, other code; and edges."""

from __future__ import annotations

import sys
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import choose_fixture
from choose_fixture import MODEL, class_folders, picture
from colours_fixture import ColourModel
from diptych.choose.adapt import check_folder_is_free, parts_of
from diptych.choose.captions import captioned
from diptych.choose.cells import Cell, Data, chosen
from diptych.choose.data import Pictures, groups_of, near_pairs
from diptych.choose.features import weights_of
from diptych.choose.run import ONE_CLASS, Outcome, Request, _chosen, file_name, made_of_now
from diptych.choose.tower_cells import trained, unseen
from diptych.choose.verdict import difference, sentences, verdict
from diptych.choose.ways import Support
from diptych.cli import app
from diptych.core.arrays import unit_rows
from diptych.core.errors import DiptychError, Interrupted
from diptych.core.files import read_json
from diptych.inference.adapted import AdaptedModel
from diptych.inference.heads import Linear, Texts
from diptych.inference.mapped import MappedModel, Maps, SideMap


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))


def cli(*words: str) -> tuple[str, str]:
    """The error, "" if there was none, and what was printed."""
    result = CliRunner().invoke(app, list(words))
    if result.exception is not None and not isinstance(result.exception, DiptychError | SystemExit):
        raise result.exception
    return str(result.exception or ""), result.output


# --- kept results ---


def test_results_of_pictures_that_were_changed_are_not_continued(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "data", each=10)
    words = ["choose", MODEL, "--data", f"classes:{folder}", "--ways", "prototypes", "--out", str(tmp_path / "o")]
    assert "To make it" in cli(*words)[1]
    Image.fromarray(picture("red", 500)).save(folder / "red" / "000.png")
    error, text = cli(*words)
    assert "holds results of other pictures" in error and "To make it" not in text  # nor is the old table shown
    (folder / "red" / "000.png").unlink()
    assert "holds results of other pictures" in cli(*words)[0]


def test_results_of_captions_that_were_changed_are_not_continued(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    for i in range(12):
        Image.fromarray(picture(("red", "green", "blue", "grey")[i % 4], i)).save(folder / f"{i:03d}.png")
        (folder / f"{i:03d}.txt").write_text("a red picture" if i % 4 == 0 else f"picture {i}")
    words = ["choose", MODEL, "--data", f"folder:{folder}", "--ways", "all", "--out", str(tmp_path / "o")]
    assert cli(*words)[0] == ""  # all ways: those for captions
    (folder / "003.txt").write_text("another caption")
    assert "holds results of other pictures" in cli(*words)[0]


def test_cells_of_other_weights_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def count(cell: Cell, data: Data) -> dict[str, Any]:
        calls.append(cell.way)
        return {**chosen(cell, data), **({"skipped": "a package is missing"} if cell.way == "knn" and len(calls) < 5 else {})}

    monkeypatch.setattr("diptych.choose.cells.chosen", count)
    folder, out = class_folders(tmp_path / "data", each=8), tmp_path / "o"
    words = ["choose", "choose_fixture:Counting", "--data", f"classes:{folder}", "--ways", "knn,prototypes", "--out", str(out)]
    assert cli(*words)[0] == "" and calls == ["majority", "knn", "prototypes"]
    assert cli(*words)[0] == "" and calls[3:] == ["knn"]  # what was skipped is tried again
    monkeypatch.setattr(choose_fixture.Counting, "key", "trained-longer")
    assert cli(*words)[0] == "" and calls[4:] == ["majority", "knn", "prototypes"]
    cells = read_json(out / "results.json")["cells"]
    assert {c["made_of"]["weights"] for c in cells} == {"trained-longer"} and all("test" in c for c in cells)


def test_weights_without_a_key_are_known_by_their_vectors() -> None:
    x = np.eye(3, dtype=np.float32)
    assert weights_of(ColourModel(), x, None) == weights_of(ColourModel(), x.copy(), None) != weights_of(ColourModel(), 2 * x, None)
    assert weights_of(choose_fixture.Counting(), x) == choose_fixture.Counting.key


def test_ways_of_ones_own_are_known_by_their_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "way_of_ones_own.py"
    file.write_text("class Mine:\n    name = 'mine'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = made_of_now("w", "way_of_ones_own:Mine")
    assert made_of_now("w", "way_of_ones_own:Mine") == before != made_of_now("v", "way_of_ones_own:Mine")
    file.write_text("class Mine:\n    name = 'mine'\n    k = 7\n")
    del sys.modules["way_of_ones_own"]
    assert made_of_now("w", "way_of_ones_own:Mine") != before


def test_two_models_never_share_a_file() -> None:
    names = [file_name(text) for text in ("runs/a", "runs-a", "hf:runs/a", "runs//a", "mmrl", "mmrl++", "tip-f")]
    assert len(set(names)) == len(names) and file_name("tip-f") == "tip-f"
    assert not any("/" in name or ":" in name for name in names)


def test_an_interrupted_training_is_not_a_skipped_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*given: Any, **named: Any) -> None:
        raise Interrupted("stopped")

    monkeypatch.setattr("diptych.choose.tower_cells.fit", stop)
    with pytest.raises(KeyboardInterrupt):
        trained(Cell("m", "lora", 0, 0), "classes:x", tmp_path, None)


def test_runs_that_are_done_need_no_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[tuple[str, float]] = []

    def train(cell: Cell, data: str, run: Path, seconds: float) -> dict[str, Any]:
        shares.append((cell.way, seconds))
        return {"model": cell.model, "way": cell.way, "accuracy": 0.5}

    monkeypatch.setattr("diptych.choose.run.trained", train)
    data = {"m": (ColourModel(), blurred(gap=1.0))}
    for ways in (("lora",), ("coop", "lora")):
        _chosen(Request(("m",), ways, "x", seconds=1000), tmp_path, data, {"m": "w"}, time.monotonic(), [], None)
    assert [way for way, _ in shares] == ["lora", "coop"] and all(900 < seconds <= 1000 for _, seconds in shares)


# --- labels to check ---


def blurred(gap: float, n: int = 120, classes: int = 4) -> Data:
    rng = np.random.default_rng(0)
    y = np.arange(n) % classes
    x = unit_rows(rng.normal(size=(n, 16)) + gap * rng.normal(size=(classes, 16))[y]).astype(np.float32)
    return Data(Support(x=x, y=y, names=tuple("abcd")), np.arange(n), tuple(f"p{i}" for i in range(n)))


def found_of(data: Data, ways: list[str]) -> Outcome:
    cells = [{**chosen(Cell("m", w, 0, 0), data), "test": {"correct": "1"}} for w in ways if w != "lora"]
    rows = [{"model": "m", "way": way} for way in ways]
    return Outcome({}, {"notes": []}, {}, cells, {"rows": rows, "winner": ("m", ways[0]), "shots": 0}, [], [])


def test_labels_are_checked_by_a_way_on_vectors_where_a_tower_wins() -> None:
    data = blurred(gap=6.0)
    y = data.support.y.copy()
    y[7] = (y[7] + 1) % 4
    data = Data(Support(x=data.support.x, y=y, names=data.support.names), data.groups, data.ids)
    found = found_of(data, ["lora", "majority", "prototypes"])
    listed, _ = ONE_CLASS.doubtful(found.verdict, found.cells, {"m": (ColourModel(), data)})
    assert [row["picture"] for row in listed] == ["p7"]
    found = found_of(data, ["lora", "majority"])
    assert ONE_CLASS.doubtful(found.verdict, found.cells, {"m": (ColourModel(), data)}) == ([], "")


def test_a_poor_winner_does_not_judge_labels() -> None:
    data = blurred(gap=0.0)
    found = found_of(data, ["prototypes", "majority"])
    listed, note = ONE_CLASS.doubtful(found.verdict, found.cells, {"m": (ColourModel(), data)})
    assert listed == [] and "labels cannot be checked" in note


# --- pictures ---


def test_near_pairs_of_one_hash_and_several_colours() -> None:
    prints = np.zeros((6, 256), dtype=np.float32)
    prints[[1, 2, 4], 64:] = 0.5  # 0 and 3 in one colour; 1, 2 and 4 in another
    prints[3:5, 5] = 1  # one bit differs
    prints[5, :40] = 1
    assert near_pairs(prints).tolist() == [[0, 3], [1, 2], [1, 4]]
    rng = np.random.default_rng(0)
    many = np.zeros((60, 256), dtype=np.float32)
    many[:, :64] = rng.integers(0, 2, (5, 64))[rng.integers(0, 5, 60)]
    many[np.arange(60), rng.integers(0, 64, 60)] = 1
    many[:, 64:] = rng.choice([0.0, 0.3, 0.9], 60)[:, None]
    apart = np.abs(many[:, None] - many[None])
    like = (apart[..., :64].sum(2) <= 4) & (apart[..., 64:].mean(2) <= 0.08)
    every = np.argwhere(np.triu(like, 1))
    assert groups_of(60, near_pairs(many)).tolist() == groups_of(60, every).tolist()
    assert near_pairs(many[:0]).shape == (0, 2)


def test_a_part_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    first, other = class_folders(tmp_path / "a", each=6), class_folders(tmp_path / "b", each=3)
    for path in other.glob("*/*.png"):
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DiptychError, match="no picture of the test part can be read"):
        parts_of(f"classes:{first}", None, f"classes:{other}")


def test_a_broken_picture_of_a_source_without_hashes_is_listed(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "a", each=12)
    (folder / "red" / "000.png").write_bytes((folder / "red" / "000.png").read_bytes()[:60])
    parts = parts_of(f"shots:classes:{folder}?shots=0")
    assert len(parts.train) + len(parts.test) == 47
    assert [p.item for p in [*parts.train.problems, *parts.test.problems]] == ["red/000.png"]


def test_data_without_captions_are_named(tmp_path: Path) -> None:
    for i in range(12):
        Image.fromarray(picture("red", i)).save(tmp_path / f"{i}.png")
    with pytest.raises(DiptychError, match=r"caption"):
        captioned(f"folder:{tmp_path}")


def test_near_duplicates_do_not_count_as_pictures_to_compare_by(tmp_path: Path) -> None:
    for i in range(12):
        Image.fromarray((picture("red", 0).astype(int) + i % 4).clip(0, 255).astype(np.uint8)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"picture {i}")
    with pytest.raises(DiptychError, match="of which 1 differ; at least 10 are needed"):
        captioned(f"folder:{tmp_path}")


def of(images: list[np.ndarray], labels: list[int]) -> Pictures:
    ids = [uuid.uuid4().hex for _ in images]
    return Pictures(ids, np.array(labels, dtype=np.int64), ("a", "b"), ids, images.__getitem__)


def test_pictures_held_out_of_a_run_are_no_near_duplicates_of_those_it_learned_from() -> None:
    one, two, three = (picture("red", i) for i in range(3))
    copy = (one.astype(int) + 3).clip(0, 255).astype(np.uint8)
    held = unseen(of([one, two], [0, 1]), of([copy, three, copy], [0, 0, 1]))
    assert held.labels.tolist() == [0, 1] and (held.read(0) == three).all()  # a copy of another class is no copy
    assert len(unseen(of([one], [0]), of([copy], [0]))) == 0 and len(unseen(of([one], [0]), of([], []))) == 0


# --- the verdict ---


def record_of(way: str, accuracy: float | None, correct: str, shots: int = 0, seed: int = 0) -> dict[str, Any]:
    loss = None if accuracy is None else 1.0
    return {
        "model": "m",
        "way": way,
        "shots": shots,
        "seed": seed,
        "accuracy": accuracy,
        "loss": loss,
        "test": {"correct": correct},
    }


def test_a_way_of_which_cross_validation_says_nothing_is_not_recommended() -> None:
    groups = [str(i) for i in range(8)]
    records = [record_of("clap", None, "11111111"), record_of("zeroshot", 0.5, "10101010")]
    found = verdict([*records, record_of("majority", None, "10000000")], groups)
    assert found["recommended"] == found["winner"] == ("m", "zeroshot")
    assert "No picture could be left out for clap" in " ".join(sentences(found))
    alone = verdict([records[0], record_of("majority", None, "10000000")], groups)
    assert alone["recommended"] == ("m", "majority") and "best by cross-validation" not in " ".join(sentences(alone))


def test_the_control_alone_is_no_comparison() -> None:
    records = [
        record_of("probe", 0.9, "1110", 4),
        record_of("majority", 0.2, "1000", 4),
        record_of("majority", 0.2, "1000"),
    ]
    assert verdict(records, list("abcd"))["shots"] == 4


def test_two_ways_are_compared_on_the_seeds_that_both_have() -> None:
    groups = [str(i) for i in range(6)]
    found = difference({0: "111111", 1: "000000"}, {1: "000000"}, groups)
    assert found["difference"] == 0 and found["p"] == 1
    every = difference({s: "1" * 12 for s in range(3)}, {s: "0" * 12 for s in range(3)}, [str(i) for i in range(12)])
    assert every["difference"] == 1 and every["p"] == pytest.approx(2 / 2**12)  # ahead in every picture: no p of 1
    same = difference({s: "10" for s in range(3)}, {s: "10" for s in range(3)}, ["a", "b"])
    assert same["difference"] == 0 and same["p"] == 1


# --- models that were adapted ---


class Base(ColourModel):
    key = "base-1"


def test_the_key_of_an_adapted_model_knows_its_settings(tmp_path: Path) -> None:
    weight = np.arange(8, dtype=np.float32).reshape(2, 4)
    head = Linear(weight, np.zeros(2, dtype=np.float32))
    made = AdaptedModel("m", Base(), head, ["a", "b"], 1.5, {"id": "probe-1"})
    made.save(tmp_path, "somewhere")
    assert AdaptedModel.load(tmp_path, lambda address, device: Base()).key == made.key
    others = [
        AdaptedModel("m", Base(), Linear(2 * weight, head.bias), ["a", "b"], 1.5, {"id": "probe-1"}),
        AdaptedModel("m", Base(), Linear(weight, head.bias, open=True), ["a", "b"], 1.5, {"id": "probe-1"}),
        AdaptedModel("m", Base(), head, ["b", "a"], 1.5, {"id": "probe-1"}),
        AdaptedModel("m", Base(), head, ["a", "b"], 1.6, {"id": "probe-1"}),
    ]
    assert len({made.key, *(other.key for other in others)}) == 5
    assert Texts(("a", "b"), 2.0).digest() == Texts(["a", "b"], 2.0).digest()  # type: ignore[arg-type]  # as it is loaded


def test_the_key_of_a_mapped_model_knows_its_maps(tmp_path: Path) -> None:
    same = SideMap.identity(4)
    made = MappedModel("m", Base(), Maps(SideMap(np.full(4, 0.1), np.zeros((4, 4))), same), {"id": "centred-1"})
    other = MappedModel("m", Base(), Maps(SideMap(np.full(4, 0.2), np.zeros((4, 4))), same), {"id": "centred-1"})
    made.save(tmp_path, "somewhere")
    again = MappedModel.load(tmp_path, lambda address, device: Base())
    assert again.key == made.key != other.key
    (tmp_path / "maps.safetensors").write_bytes(b"cut")
    with pytest.raises(DiptychError, match="adapt the model again"):
        MappedModel.load(tmp_path, lambda address, device: Base())


def test_an_adapted_model_of_the_other_kind_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    (tmp_path / "mapped.json").write_text("{}")
    with pytest.raises(DiptychError, match="holds an adapted model already"):
        check_folder_is_free(tmp_path, overwrite=False)
    check_folder_is_free(tmp_path, overwrite=True)
