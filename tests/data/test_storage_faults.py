"""Storage of which a share of the requests fails: no sample is lost, nothing comes twice, and a resumed run is the same."""

from __future__ import annotations

import random
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from diptych.config.recipe import load_recipe
from diptych.core.errors import DiptychError, Interrupted
from diptych.core.files import read_jsonl
from diptych.data.packing import pack
from diptych.data.sources import open_source
from diptych.data.storage import cache, files, patience
from diptych.training.loop import train
from engine_fixture import TINY
from sources_fixture import own_cache  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("own_cache")


class Faulty(MemoryFileSystem):
    """Fails now and then, in the ways in which object stores do."""

    protocol = "faulty"
    store: dict = {}  # noqa: RUF012 - as in the class it stands on
    pseudo_dirs = [""]  # noqa: RUF012
    rng = random.Random(0)
    share = 0.0
    faults = requests = 0

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("faulty://", "memory://"))

    def _may_fail(self, path):
        Faulty.requests += 1
        if Faulty.rng.random() < Faulty.share:
            Faulty.faults += 1
            kind = Faulty.rng.choice([ConnectionResetError, TimeoutError, OSError, EOFError])
            raise kind(f"{path}: slow down")

    def info(self, path, **options):
        self._may_fail(path)
        return super().info(path, **options)

    def ls(self, path, detail=True, **options):
        self._may_fail(path)
        return super().ls(path, detail, **options)

    def cat_file(self, path, start=None, end=None, **options):
        self._may_fail(path)
        data = super().cat_file(path, start, end, **options)
        cut = len(data) > 1 and Faulty.rng.random() < Faulty.share / 2
        return data[:-1] if cut and start is not None else data  # a connection that closed early

    def get_file(self, rpath, lpath, **options):
        self._may_fail(rpath)
        Path(lpath).write_bytes(super().cat_file(rpath))


fsspec.register_implementation("faulty", Faulty, clobber=True)


@pytest.fixture(autouse=True)
def storage(monkeypatch):
    monkeypatch.setattr(patience, "FIRST_WAIT", 0.0)
    Faulty.store.clear()
    Faulty.pseudo_dirs[:] = [""]
    Faulty.rng, Faulty.share, Faulty.faults, Faulty.requests = random.Random(0), 0.0, 0, 0
    cache._names.clear()
    cache._held.clear()


def put(folder: Path, to: str) -> None:
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with fsspec.open(f"{to}/{path.relative_to(folder)}", "wb") as file:
            file.write(path.read_bytes())


def put_pictures(folder: Path, count: int) -> None:
    """Pictures of scenes, each with its caption in a file next to it."""
    folder.mkdir()
    source = open_source("scenes:small")
    for i in range(count):
        sample = source[i]
        Image.fromarray(sample.image).save(folder / f"{i:03d}.png")
        (folder / f"{i:03d}.txt").write_text(sample.captions[0])
    put(folder, "faulty://bucket/data")


def contents(address: str) -> list:
    source = open_source(address)
    return [(s.id, tuple(s.captions), s.image.tobytes()) for s in (source[i] for i in range(len(source)))]


def test_no_item_is_lost_of_what_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setenv("DIPTYCH_CACHE_SIZE", "0")
    put_pictures(tmp_path / "data", 60)
    Faulty.share = 0.1
    found = contents("folder:faulty://bucket/data")
    assert found == contents(f"folder:{tmp_path}/data") and len(found) == 60
    assert Faulty.faults > 5, f"{Faulty.faults} of {Faulty.requests} requests failed"


def test_no_item_is_lost_of_what_is_copied(tmp_path):
    pack("scenes:small?length=90", tmp_path / "packed", 48, shard_items=10, workers=1, progress=False)
    put(tmp_path / "packed", "faulty://bucket/packed")
    Faulty.share = 0.2
    found = contents("packed:faulty://bucket/packed")
    assert found == contents(f"packed:{tmp_path}/packed") and len(found) == 90
    assert Faulty.faults > 2, f"{Faulty.faults} of {Faulty.requests} requests failed"


def test_a_run_on_faulty_storage_is_the_run_on_a_disk_and_resumes_in_mid_epoch(tmp_path, monkeypatch):
    monkeypatch.setenv("DIPTYCH_CACHE_SIZE", "0")
    put_pictures(tmp_path / "data", 64)
    common = [*TINY, "stages.0.batch_size=8", "budget=160 samples", "data.image_size=32", "checkpoints.steps=1000", "trackers=[]"]
    train(load_recipe("clip", [*common, f"data.train=folder:{tmp_path}/data"]), tmp_path / "disk")
    Faulty.share = 0.05  # the goal is stated for 1 %
    recipe = load_recipe("clip", [*common, "data.train=folder:faulty://bucket/data"])

    def stop(row):
        if row["step"] >= 10:
            raise KeyboardInterrupt

    with pytest.raises((Interrupted, KeyboardInterrupt)):
        train(recipe, tmp_path / "remote", progress=stop)
    train(recipe, tmp_path / "remote", resume=True)
    disk, remote = (read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("disk", "remote"))
    by_step = {row["step"]: row["loss"] for row in remote}
    assert Faulty.faults > 10 and disk[-1]["step"] == 20
    assert all(by_step[row["step"]] == row["loss"] for row in disk if row["step"] in by_step) and by_step[20] == disk[-1]["loss"]
    assert not any("skipped" in row and row["skipped"] for row in remote)


def test_what_lasts_is_not_tried_again_and_what_does_not_pass_is_reported(monkeypatch):
    calls = []

    def absent():
        calls.append(1)
        raise FileNotFoundError("a.png")

    with pytest.raises(FileNotFoundError):
        patience.patiently(absent)
    assert len(calls) == 1
    full = OSError(28, "No space left on device")
    assert not patience.may_pass(full) and patience.may_pass(OSError("503 Slow Down"))
    assert not patience.may_pass(ValueError("x")), "an error of ours"
    with fsspec.open("faulty://bucket/a.csv", "wb") as file:
        file.write(b"path,caption\na.png,a fox\n")
    Faulty.share = 1.0
    with pytest.raises(DiptychError, match=r"a\.csv: cannot be opened"):
        files.open_file("faulty://bucket/a.csv")
    assert Faulty.requests == patience.ATTEMPTS
