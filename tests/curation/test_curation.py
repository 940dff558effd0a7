"""Curation as a whole: the same result whoever runs it, nothing done twice, no row lost without a reason."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import cli_fixture
import sources_fixture
from curation_fixture import FULL, caption, make_folder, make_parquet, picture, plan, tree
from diptych.core.errors import DiptychError
from diptych.curation import curate
from diptych.curation.engine.work import Task, Worker, answer_to
from diptych.curation.explain import Result, explain
from diptych.curation.run import decisions
from diptych.data.sources import open_source

cli = cli_fixture.cli
own_cache = sources_fixture.own_cache


def rows(out: Path) -> list[dict]:
    return [row for table in decisions(out) for row in table.to_pylist()]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return make_folder(tmp_path / "photos")


def test_every_item_of_a_source_is_a_row_with_a_reason(folder, tmp_path):
    done = curate(FULL, folder, tmp_path / "out", runner="inline")
    found = {row["id"]: row for row in rows(tmp_path / "out")}
    assert len(found) == done.manifest["rows"] == 40
    assert found["p003.jpg"]["reason"] == "image_size failed" and "no image" in found["p003.jpg"]["errors"][0]
    assert found["p005.jpg"]["reason"] == found["p007.jpg"]["reason"] == "unusable"
    assert found["p005.jpg"]["errors"] == ["empty caption"]
    assert found["p011.jpg"]["reason"] in ("mean failed", "image_size failed")
    for i in set(range(40)) - {3, 5, 7, 11}:
        row = found[f"p{i:03d}.jpg"]
        assert row["text"] == caption(i) and row["words"] == len(caption(i).split()) and row["mean"] is not None
        assert row["kept"] == (row["reason"] is None) and (row["reasons"] == []) == row["kept"]
        assert ("few words" in row["reasons"]) == (row["words"] < 4)
    assert sum(done.manifest["reasons"].values()) + done.manifest["kept"] == 40


def test_what_is_kept_is_ready_to_train_in_every_format(folder, tmp_path, own_cache):
    originals = {p.name: p.read_bytes() for p in (tmp_path / "photos").glob("*.jpg")}
    for form in ("parquet", "images", "wds"):
        done = curate(FULL, folder, tmp_path / form, runner="inline", overrides=[f"output.format={form}"])
        source = open_source(done.address)
        wanted = {row["id"]: row["text"] for row in rows(tmp_path / form) if row["kept"]}
        assert len(source) == len(wanted) == done.manifest["kept"] > 10
        assert {source[i].extra["id"]: source[i].captions[0] for i in range(len(source))} == wanted
        files = [source.image_bytes(e) for e in source._entries]
        assert [originals[source[i].extra["id"]] for i in range(len(source))] == files  # byte for byte
        assert not source.problems


def test_the_result_does_not_depend_on_who_does_the_work(folder, tmp_path):
    curate(FULL, folder, tmp_path / "inline", runner="inline")
    for workers in (1, 2, 4):
        curate(FULL, folder, tmp_path / f"w{workers}", workers=workers)
        assert tree(tmp_path / f"w{workers}") == tree(tmp_path / "inline")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (DiptychError("no such column"), "no such column"),
        (OSError(errno.ENOSPC, "no space"), "free space and run again to resume"),
        (MemoryError(), "out of memory; use fewer --workers"),
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero"),
    ],
)
def test_every_error_of_a_worker_is_sent_as_text(error, words):
    class Broken(Worker):
        def __init__(self):
            raise error

    said, outcome = answer_to(Task("read", "a"), Broken)
    assert words in said and outcome is None


@pytest.mark.slow
def test_ray_gives_the_same(folder, tmp_path):
    pytest.importorskip("ray")
    curate(FULL, folder, tmp_path / "inline", runner="inline")
    curate(FULL, folder, tmp_path / "ray", runner="ray", workers=2)
    assert tree(tmp_path / "ray") == tree(tmp_path / "inline")


@pytest.mark.slow
def test_a_worker_of_ray_that_dies_is_replaced(folder, tmp_path):
    pytest.importorskip("ray")
    deadly = plan({"curation_fixture:Deadly": {"at": "number 15", "where": str(tmp_path)}}, "text_length")
    assert curate(deadly, folder, tmp_path / "out", runner="ray", workers=2).manifest["kept"] == 38
    assert len(list(tmp_path.glob("death-*"))) == 1
    killer = plan({"curation_fixture:Deadly": {"at": "number 15", "where": str(tmp_path), "times": 99}})
    assert curate(killer, folder, tmp_path / "killer", runner="ray", workers=2).manifest["reasons"]["deadly failed"] == 1


def test_a_second_run_does_nothing_and_changes_recompute_what_depends_on_them(folder, tmp_path):
    log = tmp_path / "log"

    def run(*, factor=1, least=5):
        steps = [
            {"curation_fixture:Loud": {"log": str(log), "factor": factor}},
            "text_length",
            "image_size",
            {"keep": {"column": "words", "min": least}},
            {"keep": {"column": "loud", "top": 0.5}},
        ]
        log.write_text("")
        done = curate(plan(*steps), folder, tmp_path / "out", runner="inline")
        return done, sum(map(int, log.read_text().split()))

    first, asked = run()
    assert first.fresh and asked == 38
    before = tree(tmp_path / "out")
    again, asked = run()
    assert not again.fresh and asked == 0 and tree(tmp_path / "out") == before
    looser, asked = run(least=4)
    assert looser.fresh and asked == 0 and looser.manifest["kept"] > first.manifest["kept"]
    store = {p: p.stat().st_mtime_ns for p in (tmp_path / "out/store").rglob("*.parquet")}
    doubled, asked = run(factor=2, least=4)
    assert doubled.fresh and asked == 38 and doubled.manifest["kept"] == looser.manifest["kept"]
    assert all(p.stat().st_mtime_ns == t for p, t in store.items())  # nothing that was there was written again
    _, asked = run()
    assert asked == 0 and tree(tmp_path / "out") == before


def test_new_rows_cost_only_themselves(tmp_path):
    log = tmp_path / "log"
    steps = plan({"curation_fixture:Loud": {"log": str(log)}}, {"keep": {"column": "loud", "top": 0.5}})
    data = make_parquet(tmp_path / "pool", n=30, files=2)
    curate(steps, data, tmp_path / "out", runner="inline")
    extra = make_parquet(tmp_path / "more", n=6, files=1)
    os.rename(open_source(extra)._entries[0].where[0], tmp_path / "pool/zzz.parquet")
    log.write_text("")
    done = curate(steps, data, tmp_path / "out", runner="inline")
    assert done.manifest["rows"] == 36 and sum(map(int, log.read_text().split())) == 6


def test_sources_of_every_kind(tmp_path, own_cache):
    steps = plan("text_length", "image_size", {"keep": {"column": "words", "min": 2}}, shard=8)
    data = make_parquet(tmp_path / "pool", n=20, files=2)
    done = curate(steps, data, tmp_path / "a", runner="inline")
    assert (done.manifest["rows"], done.manifest["kept"], done.manifest["reasons"]) == (20, 19, {"image_size failed": 1})
    inline = curate({**steps, "pool": {"shard": 8, "images": "inline"}}, data, tmp_path / "b", runner="inline")
    assert inline.manifest["kept"] == 19
    a, b = ([t["image"].to_pylist() for t in map(pq.read_table, sorted((tmp_path / x / "data").iterdir()))] for x in "ab")
    assert a == b
    for i in range(3):
        members = [
            (f"{k:03d}.{e}", picture(k) if e == "jpg" else caption(k)) for k in range(4 * i, 4 * i + 4) for e in ("jpg", "txt")
        ]
        (tmp_path / f"{i}.tar").write_bytes(sources_fixture.tar_bytes(members))
    done = curate(steps, f"wds:{tmp_path}/{{0..2}}.tar", tmp_path / "c", runner="inline")
    assert [r["id"] for r in rows(tmp_path / "c")] == [f"{k // 4}.tar:{k:03d}" for k in range(12)]
    assert done.manifest["kept"] == 12


def test_a_source_without_end_needs_a_limit_and_may_go_out_packed(tmp_path, own_cache):
    steps = {**plan("text_length", {"keep": {"column": "words", "min": 4}}), "output": {"format": "packed"}}
    with pytest.raises(DiptychError, match=r"without end: limit them, such as --set pool.limit=10000"):
        curate(steps, "scenes:small", tmp_path / "out", runner="inline")
    done = curate(steps, "scenes:small", tmp_path / "out", runner="inline", workers=1, overrides=["pool.limit=12"])
    assert done.manifest["rows"] == 12 and 0 < done.manifest["kept"] <= 12
    packed, scenes = open_source(done.address), open_source("scenes:small")
    firsts = [(r["row"] >> 32) * 7 + (r["row"] & 0xFFFFFFFF) for r in rows(tmp_path / "out") if r["kept"]]
    assert len(packed) == len(firsts) == done.manifest["kept"]
    assert [packed[i].captions for i in range(len(packed))] == [scenes[i].captions for i in firsts]
    assert not curate(steps, "scenes:small", tmp_path / "out", runner="inline", overrides=["pool.limit=12"]).fresh


def test_extras_of_the_source_can_decide(tmp_path):
    data = make_parquet(tmp_path / "pool", n=20)
    done = curate(plan({"keep": {"column": "extra.similarity", "min": 0.5}}), data, tmp_path / "out", runner="inline")
    assert done.manifest["kept"] == sum(i * 37 % 100 >= 50 for i in range(20))


def test_rows_may_be_captions_and_an_image_goes_out_with_those_it_keeps(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(6):
        (photos / f"{i}.jpg").write_bytes(picture(i))
        (photos / f"{i}.txt").write_text(f"a fine and long caption {i}\nno\nanother long one {i}")
    steps = {**plan("text_length", {"keep": {"column": "words", "min": 3}}), "pool": {"rows": "captions", "shard": 4}}
    done = curate(steps, f"folder:{photos}", tmp_path / "out", runner="inline")
    assert (done.manifest["rows"], done.manifest["kept"]) == (18, 12)
    source = open_source(done.address)
    assert len(source) == 6 and source[2].captions == ["a fine and long caption 2", "another long one 2"]


# ---- what goes wrong


def test_a_worker_that_dies_costs_nothing_but_time(folder, tmp_path):
    deadly = plan({"curation_fixture:Deadly": {"at": "number 15", "where": str(tmp_path), "times": 2}}, "text_length")
    done = curate(deadly, folder, tmp_path / "out", workers=2)
    assert done.manifest["kept"] == 38 and len(list(tmp_path.glob("death-*"))) == 2


def test_a_row_that_kills_its_worker_costs_no_other_row(folder, tmp_path):
    killer = {"curation_fixture:Deadly": {"at": "number 15", "where": str(tmp_path), "times": 99}}
    done = curate(plan("text_length", killer, "image_size"), folder, tmp_path / "out", workers=1)
    found = {row["id"]: row for row in rows(tmp_path / "out")}
    assert found["p015.jpg"]["reason"] == "deadly failed" and "killed the worker, twice" in found["p015.jpg"]["errors"][0]
    assert done.manifest["kept"] == 35 and len(list(tmp_path.glob("death-*"))) == 3
    assert found["p015.jpg"]["words"] == 6 and found["p015.jpg"]["width"] is not None  # what others say of it is kept
    assert not list((tmp_path / "out/store/crumbs").iterdir())


def test_a_shard_that_always_kills_its_worker_is_named(folder, tmp_path):
    with pytest.raises(DiptychError, match=r"shard \d: the worker died 3 times \(killed by SIGKILL\).*run again to resume"):
        curate(plan("text_length", "curation_fixture:DeadlyReduce"), folder, tmp_path / "out", workers=1)
    assert not (tmp_path / "out/manifest.json").exists() and not (tmp_path / "out/data").exists()


def test_a_source_that_vanishes_is_named_and_the_next_run_reads_what_there_is(tmp_path):
    data = make_parquet(tmp_path / "pool", n=20, files=2)
    steps = plan("text_length", "image_size")
    curate(steps, data, tmp_path / "whole", runner="inline")
    thief = plan("text_length", {"curation_thief:Thief": {"path": str(tmp_path / "pool/001.parquet")}}, "image_size")
    sys.modules["curation_thief"] = _thief()
    with pytest.raises(DiptychError, match=r"001.parquet was removed since the run began; run again"):
        curate(thief, data, tmp_path / "out", runner="inline")
    assert not (tmp_path / "out/data").exists()
    assert curate(thief, data, tmp_path / "out", runner="inline").manifest["rows"] == 10


def _thief():
    """A module with an operator that takes the source away while the run is on."""
    import types
    from dataclasses import dataclass

    import pyarrow as pa

    from diptych.curation.operators.base import Operator

    @dataclass(frozen=True, kw_only=True)
    class Thief(Operator):
        name = "thief"
        inputs = ("text",)
        outputs = {"stolen": pa.bool_()}  # noqa: RUF012
        path: str

        def compute(self, batch):
            Path(self.path).unlink(missing_ok=True)
            return {"stolen": [True] * batch.num_rows}

    module = types.ModuleType("curation_thief")
    Thief.__init__.__globals__.setdefault("Path", Path)
    module.Thief = Thief
    return module


def test_a_full_disk_is_said_and_leaves_nothing_half_written(tmp_path):
    data = make_parquet(tmp_path / "pool", n=40, files=1, side=256, group=40)
    script = (
        "import resource, sys\nfrom diptych.curation import curate\nfrom diptych.core.errors import DiptychError\n"
        "if __name__ == '__main__':\n"
        " resource.setrlimit(resource.RLIMIT_FSIZE, (25_000, 25_000))\n"
        " try: curate({'name': 't', 'pool': {'shard': 20}, 'steps': ['text_length']}, sys.argv[1], sys.argv[2], "
        "runner=sys.argv[3])\n"
        " except DiptychError as e: sys.exit(str(e))\n"
    )
    (tmp_path / "script.py").write_text(script)

    for runner in ("inline", "local"):
        asked = [sys.executable, str(tmp_path / "script.py"), data, str(tmp_path / runner), runner]
        failed = subprocess.run(asked, capture_output=True, text=True, timeout=60)
        assert failed.returncode == 1 and "free space and run again" in failed.stderr, failed.stderr
        assert "Traceback" not in failed.stderr
        assert not (tmp_path / runner / "data").exists() and not list((tmp_path / runner).rglob("*.tmp"))
        for path in (tmp_path / runner / "store").rglob("*.parquet"):
            pq.read_table(path)
    steps = {"name": "t", "pool": {"shard": 20}, "steps": ["text_length"]}
    for out in ("inline", "local", "never"):
        curate(steps, data, tmp_path / out, runner="inline")
    assert tree(tmp_path / "inline") == tree(tmp_path / "local") == tree(tmp_path / "never")


def test_two_runs_do_not_write_into_one_directory(folder, tmp_path):
    from filelock import FileLock

    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out/.lock"), pytest.raises(DiptychError, match="another run is writing there"):
        curate(FULL, folder, tmp_path / "out", runner="inline")


@pytest.mark.slow
def test_killed_ten_times_at_random_the_result_is_the_same(tmp_path):
    """SIGKILL to the whole process group, after a time drawn at random; then the same command again."""
    import random
    import signal

    folder = make_folder(tmp_path / "photos", 200)
    steps = json.loads(json.dumps(FULL).replace('"curation_fixture:Mean": {}', '"curation_fixture:Mean": {"wait": 0.05}'))
    (tmp_path / "plan.json").write_text(json.dumps({**steps, "pool": {"shard": 7}}))
    curate(json.loads((tmp_path / "plan.json").read_text()), folder, tmp_path / "whole", runner="inline")
    script = (
        "import json, sys\nfrom diptych.curation import curate\n"
        "if __name__ == '__main__': curate(json.load(open(sys.argv[1])), sys.argv[2], sys.argv[3], workers=2)\n"
    )
    (tmp_path / "script.py").write_text(script)
    asked = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "plan.json"), folder, str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    rng, kills, stored = random.Random(7), 0, []
    while kills < 10:
        process = subprocess.Popen(asked, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.8, 2.8))
        if process.poll() is not None:  # done too soon: from the start again, the kills so far count
            import shutil

            shutil.rmtree(tmp_path / "out")
            continue
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        stored.append(len(list((tmp_path / "out").rglob("*.parquet"))))
    assert subprocess.run(asked, env=environment, timeout=300).returncode == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert max(stored) > min(stored)  # the runs did go on
    assert not list((tmp_path / "out").rglob("*.tmp"))


# ---- asking about a result


def test_explain_names_threshold_and_twin(folder, tmp_path):
    curate(FULL, folder, tmp_path / "out", runner="inline")
    result = Result(tmp_path / "out")
    found = {row["id"]: row for row in rows(tmp_path / "out")}
    few = next(r["id"] for r in found.values() if r["reason"] == "few words")
    (e,) = explain(result, few)
    verdict = next(v for v in e.verdicts if v.reason == "few words")
    assert not e.kept and verdict.says == "removes" and verdict.rule == "words ≥ 4" and verdict.value == found[few]["words"]
    copies = [r for r in found.values() if r["same_image_as"] is not None]
    assert copies
    (e,) = explain(result, copies[0]["id"])
    twin = next(v.twin for v in e.verdicts if v.twin)
    assert twin["id"] == next(r["id"] for r in found.values() if r["row"] == copies[0]["same_image_as"])
    (kept,) = explain(result, twin["id"])
    assert copies[0]["id"] in kept.pointed_at_by
    dark = next(v for v in explain(result, few)[0].verdicts if v.reason == "dark")
    assert dark.says == "not asked" and dark.threshold == min(
        r["mean"] for r in found.values() if r["kept"] or r["reason"] == "chance"
    )
    (broken,) = explain(result, "p007.jpg")
    assert broken.errors == ["no caption"] and all(v.says == "not asked" for v in broken.verdicts)
    with pytest.raises(DiptychError, match="no row has the id 'p999.jpg'"):
        explain(result, "p999.jpg")


def test_the_command_line_runs_explains_reports_and_compares(cli, folder, tmp_path):
    done = cli("curate", "own-photos", "--data", folder, "--out", "a", "--runner", "inline", "--set", "steps.5.keep.min=20")
    assert done.code == 0 and "of 40 rows kept" in done.out and "diptych train clip --data" in done.out
    assert (
        "nothing to do"
        in cli("curate", "run", "own-photos", "-d", folder, "-o", "a", "--runner", "inline", "-s", "steps.5.keep.min=20").out
    )
    page = Path("a/report.html").read_text()
    for said in ("What each step removes", "Just dropped", "Duplicate groups", "data:image/webp", "image_size failed"):
        assert said in page, said
    assert "http" not in page.replace("http-equiv", "").split("<nav")[0] and "<script src" not in page
    assert cli("curate", "own-photos", "-d", folder, "-o", "b", "--runner", "inline", "-s", "steps.5.keep.min=24").code == 0
    explained = cli("curate", "explain", "p000.jpg", "--out", "b")
    assert explained.code == 0 and "dropped: tiny" in explained.out and "✗ shorter_side ≥ 24: 16" in explained.out
    assert json.loads(cli("curate", "explain", "p000.jpg", "-o", "b", "--json").out)[0]["reason"] == "tiny"
    compared = cli("curate", "diff", "a", "b").out
    assert "changed: keep shorter_side range: min: 20.0 → 24.0" in compared and "now dropped" not in compared and "tiny" in compared
    assert json.loads(cli("curate", "diff", "a", "b", "--json").out)["dropped"]["tiny"] > 0
    assert "no row changed" in cli("curate", "diff", "a", "a").out
    assert cli("curate", "report", "a").code == 0
    assert "own-photos" in cli("curate", "plans").out


def test_the_command_line_says_what_is_wrong(cli, folder):
    assert "did you mean 'own-photos'" in cli("curate", "own-phots", "--data", folder).err
    assert "there is no runner 'rey'; did you mean 'ray'" in cli("curate", "own-photos", "-d", folder, "--runner", "rey").err
    missing = cli("curate", "own-photos", "-d", "folder:/nowhere", "--runner", "inline")
    assert missing.code == 1 and "no such directory" in missing.err
    assert "not a result of `diptych curate`" in cli("curate", "report", "nothing").err
