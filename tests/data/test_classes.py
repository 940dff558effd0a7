"""``classes:``: class folders and tables of classes."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diptych.core.errors import DiptychError
from diptych.core.sample import Label
from diptych.data.inspect import inspect, print_inspection
from diptych.data.loader import loader_for
from diptych.data.source import BrokenItem
from diptych.data.sources import open_source
from diptych.data.text import Tokenizer
from sources_fixture import own_cache, picture, problems, put, root  # noqa: F401 - fixtures

pytestmark = pytest.mark.usefixtures("own_cache")
TOKENIZER = Tokenizer.train(["a photo of a red fish car hex nut"], 400, 16)


def parts(place: str, each: int = 12) -> str:
    """Three classes, one with nested folders, and what is no image of a class."""
    for name in ("car", "fish", "hex_nut"):
        for i in range(each):
            folder = f"{name}/deep/er" if name == "fish" and i % 2 else name
            put(f"{place}/{folder}/{i:02d}.png", picture(100 * len(name) + i))
    put(f"{place}/car/.hidden.png", picture(1))
    put(f"{place}/.cache/a.png", picture(2))
    put(f"{place}/notes.txt", "about the parts")
    return f"classes:{place}"


def test_class_folders(root):  # noqa: F811
    source = open_source(parts(root))
    assert source.classes == ["car", "fish", "hex_nut"] and source.fields == ("image", "text", "label")
    assert len(source) == 36 and not source.problems
    found = [source[i] for i in range(len(source))]
    assert [s.id for s in found[-2:]] == ["hex_nut/10.png", "hex_nut/11.png"]
    for sample in found:
        name = sample.id.split("/")[0]
        assert sample.fields["label"] == Label(source.classes.index(name), name)
        assert sample.captions == [f"a photo of a {name.replace('_', ' ')}"] and sample.image.shape == (8, 12, 3)
    assert source.captions(35) == ["a photo of a hex nut"]


def test_splits_keep_the_classes_and_the_images_decide(tmp_path):
    source = open_source(parts(str(tmp_path)))
    split = {name: source.split(name) for name in ("train", "validation", "test")}
    assert sum(map(len, split.values())) == 36 and all(part.classes == source.classes for part in split.values())
    ids = [part[i].id for part in split.values() for i in range(len(part))]
    assert sorted(ids) == sorted(source[i].id for i in range(36))
    assert len(open_source(f"classes:{tmp_path}?split=train")) == len(split["train"])
    assert open_source(f"classes:{tmp_path}?template=x {{}}").fingerprint() != source.fingerprint()


def test_the_class_is_part_of_the_fingerprint(tmp_path):
    for name in ("one", "two"):
        put(f"{tmp_path}/{name}/a.png", picture(1))
        put(f"{tmp_path}/{name}/b.png", picture(2))
    plain = open_source(f"classes:{tmp_path}?template=a {{}}")
    put(f"{tmp_path}/two/c.png", picture(3))
    put(f"{tmp_path}/x/one/c.png", picture(3))
    assert plain.fingerprint() != open_source(f"classes:{tmp_path}").fingerprint()


def test_what_is_broken_is_counted(tmp_path):
    parts(str(tmp_path), each=4)
    put(f"{tmp_path}/car/broken.jpg", b"no picture")
    put(f"{tmp_path}/stray.png", picture(9))
    (tmp_path / "empty").mkdir()
    source = open_source(f"classes:{tmp_path}")
    assert problems(source) == {"stray.png": "in no class folder", "empty/": "a class folder without images"}
    assert source.classes == ["car", "fish", "hex_nut"], "an empty folder is no class"
    good, broken = [], []
    for i in range(len(source)):
        try:
            good.append(source[i])
        except BrokenItem as error:
            broken.append(error.problem)
    assert len(good) == 12 and [b.item for b in broken] == ["car/broken.jpg"] and "not an image" in broken[0].reason
    assert len(good) + len(broken) + len(source.problems) == 15, "what is in the folders = samples + problems"


def test_folders_without_classes_name_the_remedy(tmp_path):
    put(f"{tmp_path}/a.png", picture(1))
    with pytest.raises(DiptychError, match=r"no class folders.*folder:"):
        open_source(f"classes:{tmp_path}")
    for name in ("train", "val"):
        put(f"{tmp_path}/set/{name}/fish/a.png", picture(1))
    with pytest.raises(
        DiptychError, match=r"parts of a data set \(train, val\), not classes; give one of them: classes:.*set/train"
    ):
        open_source(f"classes:{tmp_path}/set")
    with pytest.raises(DiptychError, match="no such directory or table"):
        open_source(f"classes:{tmp_path}/nowhere")
    with pytest.raises(DiptychError, match="template"):
        open_source(f"classes:{tmp_path}?template=a photo")
    with pytest.raises(DiptychError, match=r"unknown option 'labels'; did you mean 'label'"):
        open_source(f"classes:{tmp_path}?labels=x")


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_tables(tmp_path, kind):
    rows = [("a.png", "fish"), ("b.png", "car"), ("c.png", "fish"), ("d.png", ""), ("gone.png", "car"), ("a.png", "car")]
    for name in "abcd":
        put(f"{tmp_path}/{name}.png", picture(ord(name)))
    if kind == "jsonl":
        text = "".join(json.dumps({"file": i, "species": c or None, "place": 7}) + "\n" for i, c in rows)
    else:
        mark = "," if kind == "csv" else "\t"
        text = "".join(mark.join(row) + "\n" for row in [("file", "species", "place"), *((i, c, "7") for i, c in rows)])
    put(f"{tmp_path}/table.{kind}", text)
    source = open_source(f"classes:{tmp_path}/table.{kind}?image=file&label=species")
    assert source.classes == ["car", "fish"] and [source[i].id for i in range(len(source))] == ["a.png", "b.png", "c.png"]
    assert [source[i].fields["label"].index for i in range(3)] == [1, 0, 1] and str(source[0].extra["place"]) == "7"
    found = problems(source)
    assert found["d.png"] == "no class" and "no file" in found["gone.png"] and "kept the first, 'fish'" in found["a.png"]
    assert len(source) + len(source.problems) == len(rows)
    put(f"{tmp_path}/other.csv", "image,what\na.png,fish\n")
    with pytest.raises(DiptychError, match=r"no label column.*label=NAME"):
        open_source(f"classes:{tmp_path}/other.csv")


def test_parquet_with_bytes_and_class_labels(tmp_path):
    names = ["zebra", "ant"]
    features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    table = pa.table({"image": [{"bytes": picture(i), "path": None} for i in range(6)], "label": [0, 1, 0, 1, 1, None]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=2)
    put(f"{tmp_path}/t.parquet", file.getvalue())
    source = open_source(f"classes:{tmp_path}/t.parquet")
    assert source.classes == ["ant", "zebra"] and len(source) == 5 and problems(source) == {"t.parquet:5": "no class"}
    assert [source[i].fields["label"].name for i in range(5)] == ["zebra", "ant", "zebra", "ant", "ant"]
    assert source[3].image.shape == (8, 12, 3)


def test_labels_reach_a_batch(tmp_path):
    source = open_source(parts(str(tmp_path)))
    batch = loader_for(source, TOKENIZER, 16, 12, fields=("image", "text", "label")).rows(0, 0, 12)
    assert batch["label"].classes.strings == ("car", "fish", "hex nut")
    assert [source.classes[k] for k in batch["label"].index.tolist()] == [i.split("/")[0] for i in batch.ids]


def test_mixtures_number_classes_together(tmp_path):
    for place, names in (("a", ("cat", "zebra")), ("b", ("ant", "cat"))):
        for name in names:
            for i in range(5):
                put(f"{tmp_path}/{place}/{name}/{i}.png", picture(hash((place, name, i)) % 10**6))
    mixture = open_source(f"mix:1*classes:{tmp_path}/a+1*classes:{tmp_path}/b")
    assert mixture.classes == ["ant", "cat", "zebra"] and mixture.fields == ("image", "text", "label")
    for i in range(len(mixture)):
        label = mixture[i].fields["label"]
        assert mixture.classes[label.index] == label.name == mixture[i].id.split("/")[1]
    assert mixture.split("train").classes == mixture.classes
    same = open_source(f"mix:1*classes:{tmp_path}/a+1*classes:{tmp_path}/a")
    assert same.classes == ["cat", "zebra"]
    repeated = open_source(f"repeated:classes:{tmp_path}/a?items=1&share=0.5")
    assert repeated.classes == ["cat", "zebra"] and repeated.captions(0) == repeated[0].captions


def test_inspect_counts_classes(tmp_path, capsys):
    address = parts(str(tmp_path / "in"), each=3)
    found = inspect(address, tmp_path / "out", progress=False)
    assert found.classes == {"car": 3, "fish": 3, "hex_nut": 3} and found.fields == {"image": 9, "text": 9, "label": 9}
    print_inspection(found)
    assert "3 classes: car 3, fish 3, hex_nut 3" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "inspection.json").read_text())["classes"]["fish"] == 3
    assert np.asarray(found.width["max"]) == 12


# --- folders with a table of classes (imagefolder), synsets, several classes ---


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_folder_with_a_table_of_classes(tmp_path, kind):
    for name in ("a.png", "sub/b.png", "c.png", "stray.png"):
        put(f"{tmp_path}/{name}", picture(hash(name) % 1000))
    found = [("a.png", "fish", 3), ("sub/b.png", "car", 4), ("c.png", "fish", 5)]
    if kind == "csv":
        put(f"{tmp_path}/metadata.csv", "file_name,label,weight\n" + "".join(f"{n},{c},{w}\n" for n, c, w in found))
    elif kind == "jsonl":
        put(
            f"{tmp_path}/metadata.jsonl", "".join(json.dumps({"file_name": n, "label": c, "weight": w}) + "\n" for n, c, w in found)
        )
    else:
        names, labels, weights = zip(*found, strict=True)
        pq.write_table(pa.table({"file_name": names, "label": labels, "weight": weights}), f"{tmp_path}/metadata.parquet")
    source = open_source(f"classes:{tmp_path}")
    assert source.classes == ["car", "fish"] and problems(source) == {"stray.png": f"not named in metadata.{kind}"}
    assert [(s.id, s.fields["label"].name) for s in map(source.__getitem__, range(3))] == [(n, c) for n, c, _ in found]
    assert source[1].captions == ["a photo of a car"] and source[1].image.shape == (8, 12, 3)


def test_a_table_or_class_folders(tmp_path, capsys):
    """Both: the table's classes count, with a note; tags beside class folders are no classes; a folder of neither says so."""
    for name in ("fish/a.png", "car/b.png"):
        put(f"{tmp_path}/{name}", picture(len(name)))
    put(f"{tmp_path}/metadata.csv", "file_name,tags\nfish/a.png,blue\ncar/b.png,red\n")
    assert open_source(f"classes:{tmp_path}").classes == ["car", "fish"]
    assert open_source(f"classes:{tmp_path}?label=tags").classes == ["blue", "red"]
    put(f"{tmp_path}/metadata.csv", "file_name,species\nfish/a.png,cod\ncar/b.png,van\n")
    assert open_source(f"classes:{tmp_path}").classes == ["cod", "van"]
    assert "the classes are those of metadata.csv, not the 2 folders" in capsys.readouterr().err
    put(f"{tmp_path}/flat/metadata.csv", "file_name,price\na.png,1\n")
    put(f"{tmp_path}/flat/a.png", picture(1))
    with pytest.raises(
        DiptychError, match=r"no class folders, and metadata.csv has no column of classes.*columns: file_name, price"
    ):
        open_source(f"classes:{tmp_path}/flat")
    for part in ("train", "test"):
        put(f"{tmp_path}/parts/{part}/a.png", picture(1))
        put(f"{tmp_path}/parts/{part}/metadata.csv", "file_name,label\na.png,fish\n")
    with pytest.raises(DiptychError, match="are parts of a data set"):
        open_source(f"classes:{tmp_path}/parts")
    assert open_source(f"classes:{tmp_path}/parts/train").classes == ["fish"]


SYNSETS = {"n01440764": "tench, Tinca tinca", "n02012849": "crane", "n03126707": "crane", "n03710721": "maillot, tank suit"}


def synsets(folder, *more: str) -> str:
    for i, name in enumerate([*SYNSETS, *more]):
        put(f"{folder}/{name}/images/{name}_1.JPEG", picture(i))
    return f"classes:{folder}"


@pytest.mark.parametrize(
    ("place", "mark"),
    [("LOC_synset_mapping.txt", " "), ("words.txt", "\t"), ("../words.txt", "\t"), ("../../../synset_words.txt", " ")],
)
def test_names_of_synsets(tmp_path, place, mark, capsys):
    folder = tmp_path / "a" / "b" / "train"
    address = synsets(folder)
    rows = {**SYNSETS, "n03710637": "maillot", "n99999999": "tench"}
    put(f"{folder}/{place}", "".join(f"{k}{mark}{v}\n" for k, v in rows.items()))
    source = open_source(address)
    assert source.classes == ["crane (n02012849)", "crane (n03126707)", "maillot", "tench"], "of the folders that are there"
    assert source[0].captions == ["a photo of a tench"] and source[0].id == "n01440764/images/n01440764_1.JPEG"
    assert capsys.readouterr().err == ""


def test_synonyms_tell_classes_apart(tmp_path):
    address = synsets(tmp_path, "n03710637")
    put(f"{tmp_path}/words.txt", "".join(f"{k}\t{v}\n" for k, v in {**SYNSETS, "n03710637": "maillot"}.items()))
    assert {"maillot, tank suit", "maillot"} <= set(open_source(address).classes)


def test_synsets_without_names(tmp_path, capsys):
    put(f"{tmp_path}/words.txt", "a list of words\nabout something else\n")
    source = open_source(synsets(tmp_path))
    assert source.classes == sorted(SYNSETS)
    assert "no table of their names (LOC_synset_mapping.txt, synset_words.txt, words.txt)" in capsys.readouterr().err
    put(f"{tmp_path}/words.txt", "n01440764\ttench\n")
    assert open_source(f"classes:{tmp_path}").classes == ["n02012849", "n03126707", "n03710721", "tench"]
    assert "has no name for 3 folders: n02012849" in capsys.readouterr().err
    put(f"{tmp_path}/other/a.png", picture(7))
    assert "n01440764" in open_source(f"classes:{tmp_path}").classes, "other folders: not synsets"


@pytest.mark.parametrize("cell", ["cat|dog", "cat; dog", '"cat, dog"', '"[""cat"", ""dog""]"'])
def test_several_classes_are_refused_with_the_reason(tmp_path, cell):
    for name in "abc":
        put(f"{tmp_path}/{name}.png", picture(ord(name)))
    put(f"{tmp_path}/t.csv", f"image,labels,main\na.png,{cell},cat\nb.png,{cell},dog\nc.png,cat,cat\n")
    with pytest.raises(DiptychError, match=r"2 of 3 rows have several classes, such as a.png: cat, dog.*labels:.*\?label=NAME"):
        open_source(f"classes:{tmp_path}/t.csv")
    assert open_source(f"classes:{tmp_path}/t.csv?label=main").classes == ["cat", "dog"]
    put(f"{tmp_path}/few.csv", f'image,labels\na.png,{cell}\nb.png,dog\nc.png,["cat"]\n'.replace('["cat"]', "cat"))
    source = open_source(f"classes:{tmp_path}/few.csv")
    assert source.classes == ["cat", "dog"] and problems(source) == {"a.png": "2 classes: cat, dog"}


def test_a_mark_in_a_column_of_one_class_divides_nothing(tmp_path):
    put(f"{tmp_path}/a.png", picture(1))
    put(f"{tmp_path}/t.csv", 'image,label\na.png,"tench, Tinca tinca"\n')
    assert open_source(f"classes:{tmp_path}/t.csv").classes == ["tench, Tinca tinca"]


def test_inspect_shows_long_tails(tmp_path, capsys):
    for name, n in (("common", 12), ("rare", 1), ("some", 3), ("broken", 0)):
        for i in range(n):
            put(f"{tmp_path}/in/{name}/{i}.png", picture(100 * len(name) + i))
    put(f"{tmp_path}/in/broken/0.png", b"none")
    found = inspect(f"classes:{tmp_path}/in", progress=False)
    assert found.classes == {"broken": 0, "common": 12, "rare": 1, "some": 3} and found.lone_classes == ["broken", "rare"]
    assert found.class_size["max"] == 12 and found.class_size["min"] == 0
    print_inspection(found)
    shown = " ".join(capsys.readouterr().out.split())
    assert "4 classes: common 12, some 3, rare 1, broken 0" in shown
    assert "items a class: 0 to 12, median 3; half of all items are in 1 class" in shown
    assert "2 classes with fewer than two usable items: broken, rare; nothing of these can be left out" in shown
