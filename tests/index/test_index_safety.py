"""Nothing is lost and nothing is there twice: kill -9, Ctrl-C, a full disk, two processes at once, no torch."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diptych.core.errors import DiptychError, Interrupted
from diptych.index.catalog import Catalog
from diptych.index.index import Index, Query
from diptych.index.stores.exact import Exact
from diptych.index.updating import update as updating
from index_fixture import Pixels, content, fill, made, put

TESTS = Path(__file__).parents[1]


def forked(work: Callable[[int], Any]) -> tuple[int, int]:
    """Runs ``work(pipe)`` in a process of its own: its id, and the end of the pipe that can be read."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    try:
        os.close(reading)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        work(writing)
        os._exit(0)
    except BaseException as error:
        os.write(writing, f"{type(error).__name__}: {error}".encode()[:4000])
        os._exit(130 if isinstance(error, Interrupted) else 1)


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def changed(photos: Path) -> None:
    """A later state of a folder of forty pictures: some changed, renamed, deleted, new."""
    for seed in range(0, 8):
        put(photos / ("a" if seed % 2 else "b") / f"{seed:03d}.png", 500 + seed)
    for seed in range(8, 16):
        (photos / ("a" if seed % 2 else "b") / f"{seed:03d}.png").rename(photos / f"moved-{seed}.png")
    for seed in range(16, 22):
        (photos / ("a" if seed % 2 else "b") / f"{seed:03d}.png").unlink()
    fill(photos, 20, first=60)


def test_kill_9_ten_times_loses_nothing_and_doubles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updating, "BATCH", 2)
    monkeypatch.setattr(updating, "CHUNK", 3)
    photos = fill(tmp_path / "photos", 40)
    rng = random.Random(0)

    def killed(after: int, point: str) -> None:
        """An update that is killed when ``after`` batches are done, or at a point within what makes them lasting."""

        def work(pipe: int) -> None:
            if point == "vectors":  # they are saved, the rows are not
                change = Catalog.change
                count = iter(range(10**6))

                def dying(self: Catalog) -> Any:
                    if next(count) > 3:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return change(self)

                Catalog.change = dying  # type: ignore[method-assign]
            if point == "deleting":  # rows are deleted, their vectors are not
                Exact.delete = lambda self, ids: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
            Index.open(tmp_path / "i").update(Pixels(delay=0.001), lambda done, total: os.write(pipe, b"."), jobs=1)

        child, pipe = forked(work)
        if point == "anywhere":
            for _ in range(after):
                os.read(pipe, 1)
            os.kill(child, signal.SIGKILL)
        assert ended(child) == -signal.SIGKILL
        os.close(pipe)

    Index.create(tmp_path / "i", str(photos), Pixels(), "m").close()
    for point in ["anywhere", "vectors", "anywhere", "anywhere", "vectors"]:
        killed(rng.randint(1, 5), point)
    Index.open(tmp_path / "i").update(Pixels())
    whole = made(tmp_path / "whole", photos)
    assert content(Index.open(tmp_path / "i")) == content(whole) and len(whole) == 40
    changed(photos)
    for point in ["deleting", "vectors", "anywhere", "anywhere", "anywhere"]:
        killed(rng.randint(1, 3), point)
    whole.update(Pixels())
    model = Pixels()
    index = Index.open(tmp_path / "i")
    index.update(model)
    assert content(index) == content(whole) and len(index) == 54
    assert model.seen < 1 + 28  # what was done before the last kill was not done again
    assert not [p for p in (tmp_path / "i").rglob("*.tmp")]
    assert Index.open(tmp_path / "i").search(Query(("red",)), Pixels(), n=60, fold=False).total == 54


def test_ctrl_c_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updating, "BATCH", 2)
    photos = fill(tmp_path / "photos", 30)
    Index.create(tmp_path / "i", str(photos), Pixels(), "m").close()
    child, pipe = forked(lambda p: Index.open(tmp_path / "i").update(Pixels(delay=0.02), lambda d, t: os.write(p, b".")))
    for _ in range(4):
        os.read(pipe, 1)
    os.kill(child, signal.SIGINT)
    assert ended(child) == 130
    said = os.read(pipe, 4000).decode().lstrip(".")
    index = Index.open(tmp_path / "i")
    assert 6 <= len(index) < 30 and not index.finished and f"stopped: {len(index)} pictures are kept" in said
    model = Pixels()
    assert index.update(model).unchanged + model.seen - 2 == 30 and index.finished
    assert content(index) == content(made(tmp_path / "whole", photos))


def test_a_full_disk_is_said_and_leaves_the_index_as_it_was(tmp_path: Path) -> None:
    photos = fill(tmp_path / "photos", 5)
    made(tmp_path / "i", photos).close()
    before = content(Index.open(tmp_path / "i"))
    fill(photos, 150, first=100)

    def work(pipe: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))  # no file can grow further: the vectors need 14,400 bytes
        Index.open(tmp_path / "i").update(Pixels())

    child, pipe = forked(work)
    assert ended(child) == 1
    said = os.read(pipe, 4000).decode()
    assert "DiptychError" in said and "the disk is full" in said and "make room, and the same command continues" in said
    index = Index.open(tmp_path / "i")
    assert content(index) == before and len(index.search(Query(("red",)), Pixels(), cutoff=False).hits) == 5
    assert index.update(Pixels()).new == 150 and len(content(index)) == 155


@pytest.mark.parametrize("point", ["vectors", "rows"])
def test_no_space_left_at_any_point(tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = fill(tmp_path / "photos", 5)
    index = made(tmp_path / "i", photos)
    before = content(index)
    put(photos / "new.png", 90)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((Exact, "save", full) if point == "vectors" else (updating, "insert", full)))
    with pytest.raises(DiptychError, match="the disk is full"):
        index.update(Pixels())
    monkeypatch.undo()
    reopened = Index.open(tmp_path / "i")
    hits = reopened.search(Query(("red",)), Pixels(), cutoff=False).hits  # a vector without a row is no hit
    assert len(hits) == 5 and set(dict(reopened.catalog.rows("SELECT name, id FROM pictures"))) == set(before)
    assert reopened.update(Pixels()).new == 1 and len(content(reopened)) == 6


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    photos = fill(tmp_path / "photos", 3)
    index = made(tmp_path / "i", photos)
    put(photos / "new.png", 50)

    def slow(pipe: int) -> None:
        class Slow(Pixels):
            """Says when it begins to embed, and takes long."""

            def embed_image(self, images: Sequence[np.ndarray]) -> np.ndarray:
                os.write(pipe, b".")
                time.sleep(60)
                return super().embed_image(images)

        Index.open(tmp_path / "i").update(Slow())

    child, pipe = forked(slow)
    os.read(pipe, 1)
    try:
        with pytest.raises(DiptychError, match="another command is writing it; wait for it"):
            index.update(Pixels())
        assert index.search(Query(("red",)), Pixels()).total == 3  # reading goes on
    finally:
        os.kill(child, signal.SIGKILL)
        ended(child)
    assert index.update(Pixels()).new == 1  # the lock ended with its process


def test_damaged_files_are_named_with_the_remedy(tmp_path: Path) -> None:
    index = made(tmp_path / "i", fill(tmp_path / "photos", 3))
    index.close()
    (vectors,) = [p for p in (tmp_path / "i/vectors").glob("*.npy") if ".ids" not in p.name]
    kept = vectors.read_bytes()
    vectors.write_bytes(kept[:100])
    with pytest.raises(DiptychError, match=r"damaged.*restore it from a copy"):
        Index.open(tmp_path / "i").search(Query(("red",)), Pixels())
    vectors.unlink()
    with pytest.raises(DiptychError, match=r"a file of vectors is missing"):
        Index.open(tmp_path / "i").search(Query(("red",)), Pixels())
    vectors.write_bytes(kept)
    (tmp_path / "i/catalog.sqlite").write_bytes(b"x" * 5000)
    for extra in ("-wal", "-shm"):
        (tmp_path / f"i/catalog.sqlite{extra}").unlink(missing_ok=True)
    with pytest.raises(DiptychError, match=r"catalog.sqlite: damaged"):
        Index.open(tmp_path / "i")


def test_a_picture_whose_vector_is_not_finite_is_broken_and_the_others_are_not(tmp_path: Path) -> None:
    class Odd(Pixels):
        def embed_image(self, images: Any) -> np.ndarray:
            vectors = super().embed_image(images)
            vectors[[image.shape[0] == 7 for image in images]] = np.nan
            return vectors

    photos = fill(tmp_path / "photos", 3)
    put(photos / "odd.png", np.zeros((7, 7, 3), np.uint8))
    index = made(tmp_path / "i", photos, Odd())
    assert len(index) == 3 and "no finite vector" in index.broken()["odd.png"]


def test_small_segments_are_joined_and_dead_rows_go(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    store = Exact(tmp_path / "s", 8)
    vectors: dict[int, np.ndarray] = {}
    for step in range(60):
        ids = np.arange(step * 3, step * 3 + 3)
        fresh = rng.normal(size=(3, 8)).astype(np.float32)
        store.add(ids, fresh)
        vectors |= dict(zip(ids.tolist(), fresh, strict=True))
        if step % 7 == 3:
            gone = rng.choice(sorted(vectors), 6, replace=False)
            store.delete(gone)
            for i in gone.tolist():
                del vectors[i]
        store.save()
    files = [p for p in (tmp_path / "s").glob("*.npy") if "." not in p.stem]
    again = Exact(tmp_path / "s", 8)
    assert len(files) <= 25 and again.ids().tolist() == sorted(vectors) == store.ids().tolist()
    assert np.array_equal(again.vectors(again.ids()), np.stack([vectors[i] for i in sorted(vectors)]))
    on_disk = sum(len(np.load(p)) for p in files)
    assert on_disk <= 2 * len(vectors)


def test_an_index_is_made_and_searched_without_torch(tmp_path: Path) -> None:
    fill(tmp_path / "photos", 4)
    program = f"""
        import sys
        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("torch", "transformers"):
                    raise ImportError(f"{{name}} is blocked")
        sys.meta_path.insert(0, Blocker())
        sys.path.insert(0, {str(TESTS)!r})
        from diptych.index.index import Index, Query
        from index_fixture import Pixels
        from diptych.data.sources import open_source
        model = Pixels()
        index = Index.create({str(tmp_path / "i")!r}, {str(tmp_path / "photos")!r}, model, "m")
        index.update(model)
        index = Index.open({str(tmp_path / "i")!r}, model)
        answer = index.search(Query(("red",), like=(2,)), model, filters={{"folder": "a"}})
        index.select("s", [hit.id for hit in answer.hits])
        print(len(answer.hits), len(open_source("index:" + {str(tmp_path / "i")!r} + "?selection=s")), "torch" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second, torch = done.stdout.split()
    assert int(first) == int(second) > 0 and torch == "False"
