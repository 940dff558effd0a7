"""``shots:``: a few pictures of each class, the same as the ways on vectors learn from; the test part whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.core.errors import DiptychError
from diptych.data.sources import open_source
from diptych.data.subsets.shots import Shots, few, few_shots


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 40, 40 and 3 pictures."""
    root = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(0)
    for name, n in (("owl", 40), ("red_fox", 40), ("rare", 3)):
        (root / name).mkdir()
        for i in range(n):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(root / name / f"{i}.png")
    return root


def shots(folder: Path, query: str) -> Shots:
    source = open_source(f"shots:classes:{folder}?{query}")
    assert isinstance(source, Shots)
    return source


def counts(source: Shots) -> list[int]:
    return np.bincount([source.listed(i).fields["label"].index for i in range(len(source))], minlength=3).tolist()


def test_the_first_of_each_class_in_an_order_of_the_seed(folder: Path) -> None:
    base = open_source(f"classes:{folder}")
    train = base.split("train")
    rare = sum(train[i].fields["label"].name == "rare" for i in range(len(train)))
    four, eight, other = (shots(folder, q).split("train") for q in ("shots=4", "shots=8&seed=0", "shots=4&seed=1"))
    assert sorted(counts(four)) == sorted([4, 4, min(4, rare)]) and sorted(counts(eight)) == sorted([8, 8, min(8, rare)])
    ids = [{s[i].id for i in range(len(s))} for s in (four, eight, other)]
    assert ids[0] < ids[1] and ids[0] != ids[2] and ids[2] <= {train[i].id for i in range(len(train))}
    test = shots(folder, "shots=4").split("test")
    whole = base.split("test")
    assert {test[i].id for i in range(len(test))} == {whole[i].id for i in range(len(whole))}
    assert len(shots(folder, "shots=0").split("train")) == len(train)
    assert len({s.fingerprint() for s in (four, eight, other, test)}) == 4
    assert shots(folder, "shots=4").split("train").fingerprint() == four.fingerprint()


def test_fewer_are_part_of_more_and_none_is_all() -> None:
    labels = np.random.default_rng(3).integers(0, 5, 60)
    for seed in range(3):
        assert set(few(labels, 2, seed)) < set(few(labels, 4, seed))
    assert few(labels, 0, 0).tolist() == list(range(len(labels)))


def test_a_share_of_the_few_can_be_held_out(folder: Path) -> None:
    query = "shots=8&hold=0.25"
    kept, held, whole = shots(folder, query).split("train"), shots(folder, query).split("validation"), shots(folder, "shots=8")
    ids = [{s[i].id for i in range(len(s))} for s in (kept, held, whole.split("train"))]
    assert ids[0] | ids[1] == ids[2] and not ids[0] & ids[1]
    assert sorted(counts(held))[1:] == [2, 2] and min(counts(kept)) >= 1
    one = shots(folder, "shots=1&hold=0.5")
    assert len(one.split("train")) == 3 and len(one.split("validation")) == 0  # the last of a class is never held out


def test_samples_have_a_label_and_a_caption(folder: Path) -> None:
    source = open_source(few_shots(f"classes:{folder}?template=a drawing of a {{}}", 2, 3, "a blurred photo of a {}")).split(
        "train"
    )
    assert isinstance(source, Shots) and source.classes == ["owl", "rare", "red_fox"]
    found = {source[i].fields["label"].name: source.captions(i) for i in range(len(source))}
    assert found["red_fox"] == ["a blurred photo of a red fox"]
    assert all(source[i].captions == source.captions(i) == source.listed(i).captions for i in range(len(source)))
    assert open_source(few_shots(f"classes:{folder}")).split("train").captions(0)[0] == "a photo of an owl"  # type: ignore[attr-defined]


def test_pictures_of_one_object_of_the_built_in_world() -> None:
    few_scenes = open_source("shots:scenes:small?shots=3&seed=2").split("train")
    assert isinstance(few_scenes, Shots)
    labels = [few_scenes[i].fields["label"] for i in range(len(few_scenes))]
    assert np.bincount([x.index for x in labels]).tolist() == [3] * 12
    assert all(few_scenes.classes[x.index] == x.name for x in labels) and few_scenes.image_size == 48
    assert len(open_source("shots:scenes:small?held_out=30").split("test")) == 30


@pytest.mark.parametrize(
    ("query", "message"),
    [("template=photo", r"has no \{\} where"), ("shot=3", "unknown option 'shot'; did you mean 'shots'"), ("shots=-1", "shots")],
)
def test_wrong_options_are_refused(folder: Path, query: str, message: str) -> None:
    with pytest.raises(DiptychError, match=message):
        shots(folder, query)


def test_a_source_without_classes_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a cat")
    with pytest.raises(DiptychError, match="has no classes; read class folders or a table by classes:PATH"):
        open_source(f"shots:folder:{tmp_path}")
