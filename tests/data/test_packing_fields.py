"""``packed:`` stores every field; what version 1 wrote still opens."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from cli_fixture import cli  # noqa: F401 - a fixture
from diptych.core.errors import DiptychError
from diptych.core.sample import Captions, Conversation, Label, Region, Sample, Turn
from diptych.data.fields import FIELDS
from diptych.data.image import decode, shrink
from diptych.data.loader import loader_for
from diptych.data.packing import pack as run_pack
from diptych.data.packing.shard import VERSION, file_hash, shard_name
from diptych.data.source import BrokenItem
from diptych.data.sources import open_source
from diptych.data.sources.packed import Packed
from diptych.data.text import Tokenizer
from sources_fixture import own_cache, picture, problems, put  # noqa: F401 - fixtures

pytestmark = pytest.mark.usefixtures("own_cache")
N = 6


def pack(address, out, **options):
    return run_pack(address, out, **{"progress": False, "workers": 1, "format": "raw", **options})


def same(a, b) -> bool:
    """Whether two values of a field are equal, pixel by pixel."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b


def photo(seed: int, height: int = 60, width: int = 80, kind: str = "JPEG") -> bytes:
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(file, kind)
    return file.getvalue()


# --- a source of each kind, with N usable items and one that is broken ---


def make_classes(root: str) -> str:
    for i in range(N):
        put(f"{root}/{('car', 'hex_nut')[i % 2]}/{i}.png", picture(i))
    put(f"{root}/car/broken.png", b"none")
    return f"classes:{root}"


def make_video(root: str) -> str:
    for i in range(N):
        frames = [Image.new("RGB", (20, 10), (10 * k + i,) * 3) for k in range(2 + i)]
        put(f"{root}/{i}.txt", f"clip {i}")
        frames[0].save(f"{root}/{i}.gif", save_all=True, append_images=frames[1:], duration=30)
    put(f"{root}/x.gif", b"none")
    put(f"{root}/x.txt", "broken")
    return f"video:{root}?frames=4"


def make_documents(root: str) -> str:
    rows = [{"parts": [{"text": f"number {i}"}, {"image": "a.png"}, {"image": "b.png"}][: 1 + i % 3]} for i in range(N)]
    put(f"{root}/a.png", picture(1))
    put(f"{root}/b.png", picture(2))
    put(f"{root}/cut.png", b"none")
    rows.append({"parts": [{"image": "cut.png"}]})
    put(f"{root}/d.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return f"documents:{root}/d.jsonl"


def make_regions(root: str) -> str:
    rows = [
        {
            "image": f"{i}.png",
            "regions": [{"box": [0, 1 / 3, 5 + i / 7, 8], "phrase": f"part {i}"}] * (i % 3),
            "caption": f"the {i}th",
        }
        for i in range(N + 1)
    ]
    for i in range(N):
        put(f"{root}/{i}.png", picture(i))
    put(f"{root}/{N}.png", b"none")
    put(f"{root}/r.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return f"regions:{root}/r.jsonl"


def make_llava(root: str) -> str:
    rows = []
    for i in range(N + 1):
        names = [f"{k}.png" for k in range(i % 3)]
        asked = "<image>" * len(names) + "what is it?"
        turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": f"number {i} 🐻"}]
        rows.append({"id": f"c{i}", "image": names if i < N else ["cut.png"], "conversations": turns})
    rows[-1]["conversations"][0]["value"] = "<image>"
    for k in range(2):
        put(f"{root}/{k}.png", picture(k))
    put(f"{root}/cut.png", b"none")
    put(f"{root}/l.json", json.dumps(rows))
    return f"llava:{root}/l.json"


FILES = [make_classes, make_video, make_documents, make_regions, make_llava]
DRAWN = ["scenes:small?ask=2", "scenes:clips?ask=1", "scenes:albums?ask=1"]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("make", [*FILES, *DRAWN], ids=lambda m: m if isinstance(m, str) else m.__name__[5:])
def test_every_field_comes_back(tmp_path, make, workers):
    drawn = isinstance(make, str)
    (tmp_path / "in").mkdir()
    address = make if drawn else make(str(tmp_path / "in"))
    manifest = pack(address, tmp_path / "out", limit=N if drawn else None, workers=workers, shard_items=4)
    source, packed = open_source(address), open_source(f"packed:{tmp_path}/out")
    originals, counts = [], dict.fromkeys(source.fields, 0)
    for i in range(N if drawn else len(source)):
        try:
            originals.append(source[i])
        except BrokenItem:
            continue
    assert len(packed) == len(originals) == N == manifest["items"]
    assert manifest["parameters"]["version"] == (3 if "regions" in source.fields else 2) <= VERSION == 3
    assert manifest["broken"] == (0 if drawn else 1) and len(problems(packed)) == len(problems(source)) + manifest["broken"]
    for k, original in enumerate(originals):
        stored = packed[k]
        assert stored.id == original.id and set(stored.fields) == set(original.fields)
        assert stored.extra == json.loads(json.dumps(original.extra))
        for name, value in original.fields.items():
            assert same(stored.fields[name], value), name
            counts[name] += 1
        texts = original.captions + [t.text for t in original.turns]
        assert packed.captions(k) == texts
    assert manifest["fields"] == {name: counts[name] for name in FIELDS if name in counts}
    assert manifest["classes"] == getattr(source, "classes", None) == packed.classes
    assert set(packed.fields) == {name for name, n in counts.items() if n}
    assert Packed(str(tmp_path / "out")).verify() == []


def test_a_shard_has_the_columns_of_the_source_only(tmp_path):
    pack(make_classes(f"{tmp_path}/in"), tmp_path / "out")
    table = pa.ipc.open_file(pa.memory_map(str(tmp_path / "out" / shard_name(0)))).read_all()
    assert set(table.schema.names) == {
        *("id", "extra", "digest", "has_image", "has_text", "has_label"),
        *("image", "height", "width", "source_height", "source_width", "captions", "meanings", "label", "label_name"),
    }
    assert table["label_name"].to_pylist() == ["car", "car", "car", "hex_nut", "hex_nut", "hex_nut"]


def test_packing_and_splitting_commute(tmp_path):
    for make in FILES:
        name = make.__name__
        (tmp_path / name).mkdir()
        address = make(str(tmp_path / name))
        pack(address, tmp_path / f"{name}.out")
        whole, source = Packed(str(tmp_path / f"{name}.out")), open_source(address)
        for part in ("train", "validation", "test"):
            ids = {source.split(part)._entries[i].id for i in range(len(source.split(part)))}
            kept = whole.split(part)
            assert {kept[i].id for i in range(len(kept))} == ids - set(problems(whole))
            assert kept.classes == whole.classes


@pytest.mark.parametrize("format", ["raw", "jpeg"])
def test_boxes_and_tracks_are_scaled_with_the_pictures(tmp_path, format):
    put(f"{tmp_path}/in/a.jpg", photo(1, 60, 80))
    put(f"{tmp_path}/in/r.jsonl", json.dumps({"image": "a.jpg", "regions": [{"box": [8, 6, 40, 60], "phrase": "it"}]}))
    pack(f"regions:{tmp_path}/in/r.jsonl", tmp_path / "out", size=30, format=format)
    sample = Packed(str(tmp_path / "out"))[0]
    assert sample.image.shape == (30, 40, 3) and sample.fields["regions"] == [Region((4, 3, 20, 30), "it")] and not sample.captions
    pack("scenes:clips?size=96", tmp_path / "clips", limit=4, size=48, format=format)
    source, packed = open_source("scenes:clips?size=96"), Packed(str(tmp_path / "clips"))
    for i in range(4):
        assert packed[i].fields["video"].frames[0].shape == (48, 48, 3)
        for mine, own in zip(packed[i].extra["tracks"], source[i].extra["tracks"], strict=True):
            assert mine["boxes"] == [box and [edge / 2 for edge in box] for box in own["boxes"]]


def test_width_and_height_in_extras_stay_those_of_the_image(tmp_path):
    """Where they are something else's, they are left alone."""
    for i in range(2):
        put(f"{tmp_path}/{i}.jpg", photo(i, 60, 80))
    images = [
        {"id": 0, "file_name": "0.jpg", "width": 80, "height": 60},
        {"id": 1, "file_name": "1.jpg", "width": 80, "height": 600},
    ]
    boxes = [{"id": i, "image_id": i, "bbox": [8, 6, 32, 54], "phrase": "it"} for i in range(2)]
    put(f"{tmp_path}/c.json", json.dumps({"images": images, "annotations": boxes}))
    pack(f"coco:{tmp_path}/c.json", tmp_path / "out", size=30)
    packed = Packed(str(tmp_path / "out"))
    assert [packed[i].extra for i in range(2)] == [
        {"coco_id": 0, "width": 40, "height": 30},
        {"coco_id": 1, "width": 80, "height": 600},
    ]
    assert packed[0].image.shape == (30, 40, 3) and packed[0].fields["regions"] == [Region((4, 3, 20, 30), "it")]


def test_hashes_of_packed_data_are_put_together_once(tmp_path, monkeypatch):
    pack("scenes:small", tmp_path / "out", limit=40)
    source, read = Packed(str(tmp_path / "out")), []
    whole = Packed._digests
    monkeypatch.setattr(Packed, "_digests", lambda self: read.append(1) or whole(self))
    pack(source.address, tmp_path / "again")
    assert len(read) <= 2, "not for every item"
    again = Packed(str(tmp_path / "again"))
    assert again.digests() == source.digests()
    part = source.split("train")
    assert part.digests() == [d for d in source.digests() if d in set(part.digests())] and len(part) < 40
    assert pickle.loads(pickle.dumps(source)).digests() == source.digests()


def test_jpegs_of_documents_and_clips_are_shrunk(tmp_path):
    put(f"{tmp_path}/a.jpg", photo(1))
    put(f"{tmp_path}/d.jsonl", json.dumps({"parts": [{"text": "see"}, {"image": "a.jpg"}]}))
    pack(f"documents:{tmp_path}/d.jsonl", tmp_path / "out", size=30, format="jpeg")
    (text, image) = Packed(str(tmp_path / "out"))[0].fields["document"].parts
    wanted = shrink(decode(photo(1), "a"), 30)
    assert text == "see" and image.shape == wanted.shape and np.abs(image.astype(int) - wanted).mean() < 6


def test_the_picture_of_a_conversation_is_stored_once(tmp_path):
    put(f"{tmp_path}/a.png", photo(3, 200, 200, "PNG"))
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "spots"}]
    put(f"{tmp_path}/l.json", json.dumps([{"id": "a", "image": "a.png", "conversations": turns}]))
    manifest = pack(f"llava:{tmp_path}/l.json", tmp_path / "out")
    assert 120_000 < manifest["bytes"] < 130_000
    sample = Packed(str(tmp_path / "out"))[0]
    assert sample.fields["turns"].images[0] is sample.image and not sample.image.flags.owndata


class Own:
    """A user's source that does not say which fields it has, with a field of its own."""

    address, problems = "own:", []

    def __init__(self, place):
        self.place = place
        if place == "declared":
            self.fields = ("image", "text")

    def __len__(self):
        return 4

    def __getitem__(self, i):
        image = np.full((16, 16, 3), i, np.uint8)
        more = (
            {"label": Label(i, f"class {i}")} if i % 2 else {"turns": Conversation([Turn("user", "hm"), Turn("assistant", "ah")])}
        )
        return Sample(str(i), image=image, text=Captions([f"{i}"]), sound=[0.0, 1.0], **more)

    def fingerprint(self):
        return "own"

    def split(self, name):
        return self


def test_a_source_of_ones_own(tmp_path):
    manifest = pack(f"{__name__}:Own:x", tmp_path / "out")
    packed = Packed(str(tmp_path / "out"))
    assert [sorted(packed[i].fields) for i in range(2)] == [["image", "text", "turns"], ["image", "label", "text"]]
    assert packed[1].fields["label"] == Label(1, "class 1") and packed[0].turns == [Turn("user", "hm"), Turn("assistant", "ah")]
    assert {name: n for name, n in manifest["fields"].items() if n} == {"image": 4, "text": 4, "label": 2, "turns": 2}
    assert packed[0].fields["turns"].images is None and len({bytes(d) for d in packed.digests()}) == 4
    with pytest.raises((DiptychError, RuntimeError), match="does not declare"):
        pack(f"{__name__}:Own:declared", tmp_path / "other")


def test_batches_from_packed_fields(tmp_path):
    tokenizer = Tokenizer.train(["part number clip the 0 1 2 3 4 5th"], 400, 16)
    for make, fields in ((make_classes, ("image", "label")), (make_video, ("video", "text")), (make_documents, ("document",))):
        (tmp_path / make.__name__).mkdir()
        address = make(str(tmp_path / make.__name__))
        pack(address, tmp_path / f"{make.__name__}.out")
        plain, packed = (open_source(a) for a in (address, f"packed:{tmp_path}/{make.__name__}.out"))
        a = loader_for(packed, tokenizer, 16, 12, fields=fields).rows(0, 0, 12)
        b = {i: n for n, i in enumerate(loader_for(plain, tokenizer, 16, 12, fields=fields).rows(0, 0, 12).ids)}
        assert set(a.ids) <= set(b) and len(set(a.ids)) == N and set(a.fields) == set(fields)


def write_version_1(out: Path, source, n: int) -> None:
    """What version 1 of the format wrote, column by column."""
    texts = pa.list_(pa.string())
    schema = pa.schema(
        {
            **{"id": pa.string(), "image": pa.large_binary()},
            **dict.fromkeys(("height", "width", "source_height", "source_width"), pa.int32()),
            **{"captions": texts, "meanings": texts, "negatives": texts, "extra": pa.string(), "digest": pa.binary(16)},
        }
    )
    rows = []
    for i in range(n):
        s = source[i]
        sizes = dict.fromkeys(("height", "source_height"), s.image.shape[0]) | dict.fromkeys(
            ("width", "source_width"), s.image.shape[1]
        )
        texts_ = {"captions": s.captions, "meanings": s.meanings, "negatives": s.negatives if i % 2 else []}
        rows.append(
            {"id": s.id, "image": s.image.tobytes(), **sizes, **texts_, "extra": json.dumps(s.extra), "digest": bytes([i] * 16)}
        )
    out.mkdir()
    path = out / shard_name(0)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for first in range(0, n, 128):
            writer.write_batch(pa.RecordBatch.from_pylist(rows[first : first + 128], schema=schema))
    about = {"file": path.name, "number": 0, "items": n, "bytes": path.stat().st_size, "blake2b": file_hash(path)}
    parameters = {
        "address": source.address,
        "fingerprint": source.fingerprint(),
        "split": "all",
        "items": n,
        "size": 48,
        "format": "raw",
    }
    parameters |= {"quality": 90, "shard_items": 1024, "version": 1}
    manifest = {"complete": True, "fingerprint": "abc", "items": n, "broken": 0, "bytes": about["bytes"], "seconds": 1.0}
    manifest |= {"part": None, "native_size": 48, "parameters": parameters, "versions": {}, "shards": [about]}
    put(f"{out}/manifest.json", json.dumps(manifest))
    put(f"{out}/problems.jsonl", "")


def test_version_1_still_opens(tmp_path):
    source = open_source("scenes:small")
    write_version_1(tmp_path / "old", source, 130)
    packed = open_source(f"packed:{tmp_path}/old")
    assert len(packed) == 130 and packed.fields == ("image", "text") and packed.fingerprint() == "abc" and packed.classes is None
    for i in range(130):
        a, b = source[i], packed[i]
        assert a.id == b.id and a.fields["text"] == b.fields["text"] and np.array_equal(a.image, b.image)
        assert b.extra == json.loads(json.dumps(a.extra)) and b.fields.get("negatives") == (a.negatives if i % 2 else None)
        assert packed.captions(i) == a.captions
    assert packed.digests()[7] == bytes([7] * 16) and Packed(str(tmp_path / "old")).verify() == []
    with pytest.raises(DiptychError, match=r"version 1 \(now 3\)"):
        pack("scenes:small", tmp_path / "old", limit=130)


def test_a_newer_version_is_refused_with_the_remedy(tmp_path):
    pack("scenes:small", tmp_path / "out", limit=2)
    path = tmp_path / "out" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["parameters"]["version"] = VERSION + 1
    path.write_text(json.dumps(manifest))
    with pytest.raises(DiptychError, match=rf"packed in format {VERSION + 1}.*upgrade"):
        Packed(str(tmp_path / "out"))


def test_the_command_line_packs_and_inspects_clips(cli, tmp_path):  # noqa: F811
    done = cli("data", "pack", "scenes:clips", "out", "--limit", 3, "--format", "raw")
    assert done.code == 0 and "out: 3 items" in done.out, done.err
    found = json.loads(cli("data", "inspect", "packed:out", "--json").out)
    assert found["fields"] == {"video": 3, "text": 3, "negatives": 3} | (
        {"label": found["fields"]["label"]} if "label" in found["fields"] else {}
    )
    assert found["clip_frames"]["median"] == 8 and found["good"] == 3
