"""Copies of remote files: read once, asked for changes, kept within their size; and what a vanished file does."""

from __future__ import annotations

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from diptych.core.errors import DiptychError
from diptych.data.loader import loader_for
from diptych.data.packing import pack
from diptych.data.source import BrokenItem
from diptych.data.sources import open_source
from diptych.data.storage import cache, files
from diptych.data.text import Tokenizer
from sources_fixture import CAPTIONS, NAMES, PICTURES, make_coco, make_csv, make_wds, own_cache, put  # noqa: F401 - fixtures

pytestmark = pytest.mark.usefixtures("own_cache")


class Remote(MemoryFileSystem):
    """A file system that is not local, and counts what is fetched from it."""

    protocol = "remote"
    store: dict = {}  # noqa: RUF012 - as in the class it stands on
    pseudo_dirs = [""]  # noqa: RUF012
    fetched: list = []  # noqa: RUF012
    without_room = False

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("remote://", "memory://"))

    def get_file(self, rpath, lpath, **options):
        self.fetched.append(rpath)
        if Remote.without_room:
            raise OSError(28, "No space left on device")
        return super().get_file(rpath, lpath, **options)

    def cat_file(self, path, **options):
        self.fetched.append(f"piece of {path}")
        return super().cat_file(path, **options)


fsspec.register_implementation("remote", Remote, clobber=True)


@pytest.fixture(autouse=True)
def remote():
    Remote.store.clear()
    Remote.pseudo_dirs[:] = [""]
    Remote.fetched.clear()
    Remote.without_room = False
    cache._names.clear()
    cache._held.clear()
    return "remote://bucket/data"


def new_process():
    cache._names.clear()


def test_a_remote_file_is_fetched_once(remote):
    url = put(f"{remote}/a", b"0123456789")
    assert files.read(url) == b"0123456789" and files.read(url, 2, 3) == b"234"
    new_process()
    assert files.open_file(url).read() == b"0123456789" and len(Remote.fetched) == 1


def test_a_file_that_has_changed_is_fetched_again_by_the_next_process(remote):
    url = put(f"{remote}/a", b"old")
    assert files.read(url) == b"old"
    put(url, b"newer")
    assert files.read(url) == b"old", "one process sees one state"
    new_process()
    assert files.read(url) == b"newer"


def test_the_least_recently_used_copies_make_room(remote, monkeypatch):
    monkeypatch.setenv("DIPTYCH_CACHE_SIZE", "1kB")
    urls = [put(f"{remote}/{i}", bytes([i]) * 300) for i in range(4)]
    copies = [cache.local_copy(url) for url in urls[:3]]
    import os

    for age, copy in zip((30, 10, 20), copies, strict=True):
        os.utime(copy, (1e9 - age, 1e9 - age))
    cache.local_copy(urls[3])
    assert [os.path.exists(copy) for copy in copies] == [False, True, True]
    assert files.read(urls[0]) == bytes([0]) * 300, "and it is fetched again"


def test_what_is_larger_than_the_cache_is_read_where_it_is(remote, monkeypatch):
    monkeypatch.setenv("DIPTYCH_CACHE_SIZE", "100B")
    url = put(f"{remote}/a", bytes(range(256)))
    assert files.read(url, 5, 2) == bytes([5, 6]) and files.open_file(url).read(3) == bytes([0, 1, 2])
    assert not any(p == "/bucket/data/a" for p in Remote.fetched)
    monkeypatch.setenv("DIPTYCH_CACHE_SIZE", "a lot")
    with pytest.raises(DiptychError, match="expected a size such as 50GB"):
        files.read(url)


def test_a_full_disk_under_the_cache_costs_only_the_copies(remote):
    Remote.without_room = True
    url = put(f"{remote}/a", b"0123")
    assert files.read(url) == b"0123"
    assert not [p for p in cache.cache_directory().rglob("*") if p.is_file()], "nothing half-written"


@pytest.mark.parametrize("make", [make_coco, make_csv, make_wds])
def test_sources_read_through_the_cache(remote, make):
    source = open_source(make(remote))
    for _ in range(2):
        assert [source[i].captions for i in range(3)] == CAPTIONS
    assert len(Remote.fetched) == len(set(Remote.fetched)), "each file once"
    new_process()
    again = open_source(source.address)
    fetched = len(Remote.fetched)
    assert [again[i].id for i in range(3)] == [source[i].id for i in range(3)] and len(Remote.fetched) == fetched
    assert again.fingerprint() == source.fingerprint()


def test_a_vanished_remote_file_is_a_reason_not_the_end(remote):
    source = open_source(make_csv(remote))
    Remote.store.pop(f"/bucket/data/{NAMES[0]}")
    with pytest.raises(BrokenItem, match=r"a\.png: cannot be read"):
        source[0]
    loader = loader_for(source, Tokenizer.train(["a"], 400, 12), 16, 3)
    assert loader.batch(0).size == 3 and "cannot be read" in loader.problems[NAMES[0]].reason


def test_packed_data_is_read_from_a_copy(remote, tmp_path, monkeypatch):
    pack(make_csv(remote), tmp_path / "out", format="raw", progress=False)
    for path in (tmp_path / "out").glob("[!.]*"):
        put(f"{remote}/packed/{path.name}", path.read_bytes())
    source = open_source(f"packed:{remote}/packed")
    assert [source[i].id for i in range(3)] == NAMES and len(PICTURES) == len(source)
    assert not source[0].image.flags.owndata and source.verify() == []
    monkeypatch.setenv("DIPTYCH_CACHE_SIZE", "50B")
    new_process()
    with pytest.raises(DiptychError, match="set DIPTYCH_CACHE_SIZE"):
        open_source(f"packed:{remote}/packed")
    monkeypatch.delenv("DIPTYCH_CACHE_SIZE")
    Remote.store.pop("/bucket/data/packed/shard-00000.arrow")
    with pytest.raises(DiptychError, match=r"shard-00000.arrow: this shard is missing"):
        open_source(f"packed:{remote}/packed")
