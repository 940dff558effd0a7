"""Packing and reading back: what is kept, what a kill, a full disk or a changed file does."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import simplejpeg
from PIL import Image

from cli_fixture import cli  # noqa: F401 - a fixture
from diptych.core.errors import DiptychError
from diptych.core.sample import Sample, captioned
from diptych.data.image import decode, shrink
from diptych.data.loader import loader_for
from diptych.data.packing import pack as run_pack
from diptych.data.packing.shard import ROWS, shard_name
from diptych.data.source import BrokenItem
from diptych.data.sources import open_source
from diptych.data.sources.packed import Packed
from diptych.data.text import Tokenizer
from sources_fixture import MAKERS, make_csv, own_cache, problems, put, root  # noqa: F401 - fixtures

pytestmark = pytest.mark.usefixtures("own_cache")


def pack(address, out, **options):
    return run_pack(address, out, **{"progress": False, "workers": 1, **options})


def photo(seed: int, height: int = 60, width: int = 80) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def encoded(image: np.ndarray, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """Forty photographs with two captions each, and three files that cannot be used."""
    place = tmp_path_factory.mktemp("photos")
    for i in range(40):
        put(f"{place}/{i:02d}.jpg", encoded(photo(i), quality=95))
        put(f"{place}/{i:02d}.txt", f"photo number {i}\nthe {i}th of them")
    put(f"{place}/cut.jpg", encoded(photo(99))[:500])
    put(f"{place}/cut.txt", "half a picture")
    put(f"{place}/none.jpg", b"")
    put(f"{place}/none.txt", "no picture")
    put(f"{place}/silent.jpg", encoded(photo(98)))
    return f"folder:{place}"


def good(source):
    """Every usable sample by id."""
    found = {}
    for i in range(len(source)):
        try:
            sample = source[i]
        except BrokenItem:
            continue
        found[sample.id] = sample
    return found


# What is kept.


@pytest.mark.parametrize(("format", "workers"), [("raw", 1), ("raw", 3), ("jpeg", 1), ("jpeg", 3), ("webp", 1)])
def test_a_packed_folder_holds_the_same_samples(folder, tmp_path, format, workers):
    manifest = pack(folder, tmp_path / "out", size=32, format=format, workers=workers, shard_items=16)
    packed, source = open_source(f"packed:{tmp_path}/out"), open_source(folder)
    originals = good(source)
    assert manifest["items"] == len(packed) == len(originals) == 40 and len(manifest["shards"]) == 3
    assert [packed[i].id for i in range(40)] == list(originals), "in the order of the source"
    for sample in good(packed).values():
        original = originals[sample.id]
        assert (sample.captions, sample.extra) == (original.captions, original.extra)
        expected = shrink(original.image, 32)
        assert expected.shape == (32, 43, 3)
        if format == "jpeg":
            expected = simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(expected, quality=90, colorsubsampling="420"))
        if format == "webp":
            written = io.BytesIO()
            Image.fromarray(expected).save(written, "WEBP", quality=90)
            expected = np.asarray(Image.open(written).convert("RGB"))
        assert np.array_equal(sample.image, expected)
    assert problems(packed) == {**problems(source), **{k: v for k, v in problems(packed).items() if k in ("cut.jpg", "none.jpg")}}
    assert {"cut.jpg", "none.jpg", "silent.jpg"} <= set(problems(packed)), "broken ones with their reasons"
    assert manifest["broken"] == 2 and manifest["complete"]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__[5:])
def test_every_format_can_be_packed(make, root, tmp_path):  # noqa: F811
    source = open_source(make(root))
    pack(make(root), tmp_path / "out", format="raw")
    packed = Packed(str(tmp_path / "out"))
    for i in range(len(source)):
        a, b = source[i], packed[i]
        assert (a.id, a.captions, a.extra) == (b.id, b.captions, b.extra) and np.array_equal(a.image, b.image)
    assert packed.digests() == source.digests()


def test_packing_and_splitting_commute(folder, tmp_path):
    pack(folder, tmp_path / "all", size=32, shard_items=16)
    whole, source = open_source(f"packed:{tmp_path}/all"), open_source(folder)
    names = []
    for part in ("train", "validation", "test"):
        pack(folder, tmp_path / part, size=32, split=part)
        before = open_source(f"packed:{tmp_path}/{part}")
        wanted = list(good(source.split(part)))
        assert (
            list(good(before))
            == list(good(whole.split(part)))
            == list(good(open_source(f"packed:{tmp_path}/all?split={part}")))
            == wanted
        )
        assert before.split(part) is before
        names += wanted
    assert sorted(names) == sorted(good(whole))
    with pytest.raises(DiptychError, match="only the train part"):
        open_source(f"packed:{tmp_path}/train").split("test")


def test_scenes_need_a_limit_and_keep_their_meanings_negatives_and_boxes(tmp_path):
    with pytest.raises(DiptychError, match="--limit"):
        pack("scenes:small", tmp_path / "out")
    pack("scenes:small", tmp_path / "out", limit=20, format="raw")
    source, packed = open_source("scenes:small"), Packed(str(tmp_path / "out"))
    assert packed.image_size == source.image_size == 48 and len(packed) == 20
    for i in range(20):
        a, b = source[i], packed[i]
        assert (a.id, a.captions, a.meanings, a.negatives) == (b.id, b.captions, b.meanings, b.negatives)
        assert np.array_equal(a.image, b.image) and json.loads(json.dumps(a.extra)) == b.extra
    assert len(packed.split("train")) + len(packed.split("validation")) + len(packed.split("test")) == 20


def test_boxes_are_in_pixels_of_the_packed_image(tmp_path):
    pack("scenes:full?size=96", tmp_path / "out", limit=3, size=48)
    for i, sample in enumerate(Packed(str(tmp_path / "out"))[k] for k in range(3)):
        for mine, original in zip(sample.extra["boxes"], open_source("scenes:full?size=96")[i].extra["boxes"], strict=True):
            assert mine["box"] == [edge / 2 for edge in original["box"]]


def test_a_jpeg_that_fits_is_not_encoded_again(tmp_path):
    data = encoded(photo(1))
    turned = Image.Exif()
    turned[0x0112] = 6
    for name, content in (("plain", data), ("turned", encoded(photo(2), exif=turned)), ("drawn", encoded(photo(3), "PNG"))):
        put(f"{tmp_path}/in/{name}.{'png' if name == 'drawn' else 'jpg'}", content)
        put(f"{tmp_path}/in/{name}.txt", name)
    pack(f"folder:{tmp_path}/in", tmp_path / "out", size=64)
    packed = Packed(str(tmp_path / "out"))
    shard = packed._shard(0)
    rows = {shard[i]["id"]: shard[i] for i in range(3)}
    assert rows["plain.jpg"]["image"].tobytes() == data
    assert np.array_equal(good(packed)["plain.jpg"].image, decode(data, "plain"))
    assert [rows["turned.jpg"][side] for side in ("height", "width")] == [80, 60] and good(packed)["turned.jpg"].image.shape == (
        80,
        60,
        3,
    ), "upright"


def test_shrinking_keeps_the_whole_picture_and_never_enlarges():
    assert shrink(photo(0, 60, 80), 30).shape == (30, 40, 3) and shrink(photo(0, 300, 20), 10).shape == (150, 10, 3)
    small = photo(0, 20, 30)
    assert shrink(small, 32) is small
    assert shrink(photo(0, 1000, 7), 7).shape == (1000, 7, 3)


def test_the_raw_form_is_a_view_into_the_file(folder, tmp_path):
    pack(folder, tmp_path / "out", format="raw", size=32)
    packed = Packed(str(tmp_path / "out"))
    image = packed[0].image
    assert not image.flags.owndata and not image.flags.writeable
    columns = packed._shard(0).columns(0)
    assert np.shares_memory(image, columns["image"].data)


def test_any_arrow_reader_opens_a_shard(folder, tmp_path):
    pack(folder, tmp_path / "out", size=32)
    table = pa.ipc.open_file(pa.memory_map(str(tmp_path / "out" / shard_name(0)))).read_all()
    assert table.num_rows == 40 and table["captions"][0].as_py() == ["photo number 0", "the 0th of them"]
    assert (table["source_height"][0].as_py(), table["source_width"][0].as_py()) == (60, 80)


def test_more_rows_than_a_record_batch_holds(tmp_path):
    n = 2 * ROWS + 5
    pack("scenes:small", tmp_path / "out", limit=n, format="raw", shard_items=n)
    packed, source = Packed(str(tmp_path / "out")), open_source("scenes:small")
    for i in (0, ROWS - 1, ROWS, 2 * ROWS, n - 1, -1):
        assert packed[i].captions == source[i % n].captions == packed.captions(i)
    with pytest.raises(IndexError):
        packed[n]


def test_reading_from_workers_gives_the_same_batches(folder, tmp_path):
    pack(folder, tmp_path / "out", size=32, shard_items=16)
    tokenizer = Tokenizer.train(["photo number of them"], 400, 12)
    for source in (Packed(str(tmp_path / "out")), open_source(f"mix:2*packed:{tmp_path}/out+1*{folder}")):
        plain = loader_for(source, tokenizer, 32, 8, augment="crop")
        stream = loader_for(source, tokenizer, 32, 8, augment="crop", workers=2).stream(3)
        for step in (3, 4, 5):
            a, b = plain.batch(step), next(stream)
            assert a.ids == b.ids and a["text"].strings == b["text"].strings and a["image"].pixels.equal(b["image"].pixels)
        stream.close()
    copy = pickle.loads(pickle.dumps(Packed(str(tmp_path / "out"))))
    assert np.array_equal(copy[7].image, Packed(str(tmp_path / "out"))[7].image)


# What goes wrong.


def test_other_parameters_are_refused_with_the_remedy(folder, tmp_path):
    pack(folder, tmp_path / "out", size=32)
    for options, said in (({"size": 48}, "--size 32 (now 48)"), ({"size": 32, "format": "raw"}, "--format jpeg (now raw)")):
        with pytest.raises(DiptychError) as error:
            pack(folder, tmp_path / "out", **options)
        assert said in str(error.value) and "choose another OUT" in str(error.value)
    put(f"{tmp_path}/other/file", "")
    with pytest.raises(DiptychError, match="not empty"):
        pack(folder, tmp_path / "other", size=32)


def test_a_source_that_has_changed_since_is_refused(tmp_path):
    address = make_csv(f"{tmp_path}/in")
    pack(address, tmp_path / "out")
    put(f"{tmp_path}/in/new.png", encoded(photo(5), "PNG"))
    source = open_source(address)
    table = Path(f"{tmp_path}/in/table.csv")
    table.write_text(table.read_text() + "new.png,one more\n")
    assert len(open_source(address)) == len(source) + 1
    with pytest.raises(DiptychError, match=r"--limit 3 \(now 4\)"):
        pack(address, tmp_path / "out")


def test_a_repeated_command_takes_up_what_is_there(folder, tmp_path):
    first = pack(folder, tmp_path / "out", size=32, shard_items=8)
    stamps = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.arrow")}
    (tmp_path / "out" / shard_name(1)).unlink()
    (tmp_path / "out" / shard_name(2)).write_bytes(b"cut off")
    (tmp_path / "out" / ".shard-00004.arrow.123.tmp").write_bytes(b"left by a kill")
    again = pack(folder, tmp_path / "out", size=32, shard_items=8)
    changed = {p.name for p in (tmp_path / "out").glob("*.arrow") if p.stat().st_mtime_ns != stamps[p.name]}
    assert changed == {shard_name(1), shard_name(2)} and not list((tmp_path / "out").glob("*.tmp"))
    assert again["shards"] == first["shards"] and again["fingerprint"] == first["fingerprint"]
    assert Packed(str(tmp_path / "out")).verify() == []


SLOW = """
import sys, time
from diptych.data.packing import pack, shard
plain = shard.row_of
def slowly(*arguments):
    time.sleep(0.02)
    return plain(*arguments)
shard.row_of = slowly
pack({address!r}, {out!r}, size=32, shard_items=4, workers={workers}, progress=False)
"""


def start(folder: str, out: Path, workers: int) -> subprocess.Popen:
    code = SLOW.format(address=folder, out=str(out), workers=workers)
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, start_new_session=True)
    for _ in range(1000):
        manifest = out / "manifest.json"
        if manifest.is_file() and len(json.loads(manifest.read_text())["shards"]) >= 2:
            return process
        time.sleep(0.02)
    raise AssertionError("packed nothing in 20 s")


@pytest.mark.parametrize("workers", [1, 2])
def test_after_kill_9_the_same_command_finishes(folder, tmp_path, workers):
    out = tmp_path / "out"
    process = start(folder, out, workers)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(DiptychError, match=r"not finished .* run the same"):
        Packed(str(out))
    for _ in range(100):  # orphaned workers end by themselves
        if not list(out.glob("*.tmp")) or workers == 1:
            break
        time.sleep(0.05)
    kept = {s["file"]: s for s in json.loads((out / "manifest.json").read_text())["shards"]}
    stamps = {name: (out / name).stat().st_mtime_ns for name in kept}
    assert kept
    whole = pack(folder, out, size=32, shard_items=4)
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == stamps, "finished shards are not made again"
    assert whole["shards"] == pack(folder, tmp_path / "at-once", size=32, shard_items=4)["shards"]
    assert problems(Packed(str(out))) == problems(Packed(str(tmp_path / "at-once")))


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_keeps_finished_shards_and_leaves_nothing_half_written(folder, tmp_path, workers):
    out = tmp_path / "out"
    process = start(folder, out, workers)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to all of them
    _, said = process.communicate(timeout=20)
    assert b"Interrupted: interrupted:" in said and b"the same command resumes" in said
    assert not list(out.glob("*.tmp"))
    kept = [s["file"] for s in json.loads((out / "manifest.json").read_text())["shards"]]
    assert len(kept) >= 2 and all((out / name).is_file() for name in kept)
    assert pack(folder, out, size=32, shard_items=4)["complete"]


class Mortal:
    """A source whose process is killed at the tenth item."""

    address, problems = "mortal:", []

    def __init__(self, place):
        self.victim = None

    def __len__(self):
        return 16

    def __getitem__(self, i):
        if i == 10:
            os.kill(os.getpid(), signal.SIGKILL)
        return Sample(str(i), image=photo(i), text=captioned(["one"]))

    def fingerprint(self):
        return "mortal"

    def split(self, name):
        return self


def test_a_killed_packing_process_is_named(tmp_path):
    with pytest.raises(DiptychError, match=r"died \(killed by SIGKILL; .*fewer --workers"):
        pack(f"{__name__}:Mortal:x", tmp_path / "out", workers=2, shard_items=4)
    assert {s["number"] for s in json.loads((tmp_path / "out" / "manifest.json").read_text())["shards"]} <= {0, 1, 3}


def test_a_full_disk_leaves_whole_shards_and_says_what_to_do(folder, tmp_path, monkeypatch):
    """The writer's own error for a device without room, raised where Arrow raises it."""
    plain = pa.RecordBatch.from_pylist
    calls = []

    class Full:
        @staticmethod
        def from_pylist(*arguments, **options):
            calls.append(1)
            if len(calls) > 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            return plain(*arguments, **options)

    monkeypatch.setattr(pa, "RecordBatch", Full)
    with pytest.raises(DiptychError, match=r"the disk is full; 2 finished shards are kept"):
        pack(folder, tmp_path / "out", size=32, shard_items=8)
    assert sorted(p.name for p in (tmp_path / "out").glob("*shard*")) == [shard_name(0), shard_name(1)]
    monkeypatch.undo()
    assert pack(folder, tmp_path / "out", size=32, shard_items=8)["complete"]


def test_two_packings_into_one_place_are_refused(folder, tmp_path):
    from filelock import FileLock

    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(DiptychError, match="another process is packing"):
        pack(folder, tmp_path / "out", size=32)


def test_nothing_usable_is_an_error(tmp_path):
    put(f"{tmp_path}/in/a.jpg", b"no picture")
    put(f"{tmp_path}/in/a.txt", "a")
    with pytest.raises(DiptychError, match=r"no usable item among 1; first: a.jpg: not an image"):
        pack(f"folder:{tmp_path}/in", tmp_path / "out")


def test_damaged_shards_are_named(folder, tmp_path):
    out = tmp_path / "out"
    pack(folder, out, size=32, format="raw", shard_items=16)
    whole = (out / shard_name(1)).read_bytes()

    def damage(content: bytes | None) -> None:
        (out / shard_name(1)).unlink(missing_ok=True)  # a file that is mapped must not be written to
        if content is not None:
            (out / shard_name(1)).write_bytes(content)

    damage(whole[:-100])
    with pytest.raises(DiptychError, match=r"shard-00001.arrow: cut off: .* bytes"):
        Packed(str(out))
    damage(None)
    with pytest.raises(DiptychError, match=r"shard-00001.arrow: this shard is missing"):
        Packed(str(out))
    damage(whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :])
    (wrong,) = Packed(str(out)).verify()
    assert "shard-00001.arrow: altered" in wrong
    damage(bytes(len(whole)))
    with pytest.raises(DiptychError, match=r"shard-00001.arrow: damaged"):
        Packed(str(out))
    damage(whole)
    assert Packed(str(out)).verify() == []


def test_a_damaged_jpeg_in_a_shard_is_one_broken_item(folder, tmp_path):
    pack(folder, tmp_path / "out", size=32)
    path = tmp_path / "out" / shard_name(0)
    data, picture = path.read_bytes(), Packed(str(tmp_path / "out"))._shard(0)[3]["image"].tobytes()
    path.unlink()
    path.write_bytes(data.replace(picture, b"\xff\xd8\xff" + bytes(len(picture) - 3)))
    packed = Packed(str(tmp_path / "out"))
    with pytest.raises(BrokenItem, match=r"03.jpg"):
        packed[3]
    assert packed[4].id == "04.jpg"


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"parameters": {"version": 99}, "complete": true, "shards": []}'])
def test_a_manifest_that_is_none(tmp_path, content):
    with pytest.raises(DiptychError, match="diptych data pack"):
        Packed(str(tmp_path))
    put(f"{tmp_path}/manifest.json", content)
    with pytest.raises(DiptychError, match="manifest"):
        Packed(str(tmp_path))


def test_the_command_line(cli, folder, tmp_path):  # noqa: F811
    done = cli("data", "pack", folder, "out", "--size", 32, "--workers", 2)
    assert done.code == 0 and "out: 40 items, 2 broken ones left out" in done.out and "--data packed:out" in done.out
    assert "40 of 42" not in done.err and "42 of 42 items" in done.err
    again = cli("data", "pack", folder, "out", "--size", 32, "--json")
    assert json.loads(again.out)["items"] == 40 and not again.err
    assert "40 items in 1 shard, all as packed" in cli("data", "verify", "packed:out").out
    refused = cli("data", "pack", folder, "out", "--size", 48)
    assert refused.code == 1 and refused.err.startswith("error: out was packed with other parameters: --size 32 (now 48)")
    looked = cli("data", "inspect", "packed:out", "--json")
    assert json.loads(looked.out)["good"] == 40
    path = tmp_path / "out" / shard_name(0)
    data = bytearray(path.read_bytes())
    data[5000] ^= 255
    path.unlink()
    path.write_bytes(bytes(data))
    damaged = cli("data", "verify", "out")
    assert damaged.code == 1 and "shard-00000.arrow: altered" in damaged.err


def test_a_bare_path_to_packed_data_is_understood(folder, tmp_path):
    pack(folder, tmp_path / "out", size=32)
    assert isinstance(open_source(str(tmp_path / "out")), Packed)


@pytest.mark.slow
def test_packing_and_reading_do_not_creep(tmp_path):
    """Resident memory after the first pass over the data, beyond the mapped file itself, stays where it was."""
    code = f"""
import numpy as np
from diptych.data.packing import pack
from diptych.data.sources.packed import Packed

def own():  # anonymous memory: pages of mapped files are the kernel's to drop
    return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('RssAnon')) * 1024

sizes = []
for limit in (1000, 8000):
    pack('scenes:small', f'{tmp_path}/{{limit}}', limit=limit, format='raw', shard_items=500, workers=1, progress=False)
    sizes.append(own())
assert sizes[1] - sizes[0] < 8e6, sizes
packed = Packed('{tmp_path}/8000')
rng, sizes = np.random.default_rng(0), []
for _ in range(6):
    for i in rng.integers(0, len(packed), 20000):
        packed[int(i)]
    sizes.append(own())
assert sizes[-1] - sizes[1] < 2e6, sizes
"""
    subprocess.run([sys.executable, "-c", code], check=True)
