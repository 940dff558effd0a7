"""Push and pull against a server that speaks the hub's API."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import cli_fixture
import hub_fixture
from cli_fixture import Cli
from diptych.core.errors import DiptychError
from diptych.inference.hub.listing import blake2b, git_oid, listing
from diptych.inference.hub.push import _groups, checked
from hub_fixture import TOKEN, Hub

cli = cli_fixture.cli
hub = hub_fixture.hub

BIG = bytes(range(256)) * 40  # goes by LFS


def an_export(folder: Path) -> Path:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(BIG)
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "README.md").write_text("---\nlicense: other\n---\n# clip")
    files = {name: blake2b(folder / name) for name in ("model.safetensors", "config.json")}
    (folder / "export.json").write_text(json.dumps({"format": "transformers", "key": "k", "files": files}))
    return folder


def a_set(folder: Path) -> Path:
    (folder / "data").mkdir(parents=True)
    (folder / "decisions").mkdir()
    (folder / "data" / "part-00000.parquet").write_bytes(BIG)
    (folder / "decisions" / "part-00000.parquet").write_bytes(b"dropped")
    shards = [{"file": "part-00000.parquet", "blake2b": blake2b(folder / "data" / "part-00000.parquet")}]
    (folder / "manifest.json").write_text(json.dumps({"output": "parquet", "shards": shards}))
    (folder / "plan.yaml").write_text("name: few\n")
    (folder / "README.md").write_text("---\nlicense: cc0-1.0\n---\n# few")
    return folder


def test_only_what_an_export_wrote_is_listed(tmp_path: Path) -> None:
    folder = an_export(tmp_path / "e")
    (folder / ".env").write_text("SECRET=1")
    (folder / "notes.txt").write_text("mine")
    found = listing(folder)
    assert [f.name for f in found.files] == ["README.md", "config.json", "export.json", "model.safetensors"]
    assert found.left_out.keys() == {".env", "notes.txt"} and found.kind == "model" and "licence" in found.notes[0]
    (folder / "config.json").write_text('{"a": 2}')
    with pytest.raises(DiptychError, match="config.json is not as it was exported"):
        listing(folder)


def test_decisions_of_a_curated_set_stay_here(tmp_path: Path) -> None:
    found = listing(a_set(tmp_path / "s"))
    assert [f.name for f in found.files] == ["README.md", "data/part-00000.parquet", "manifest.json", "plan.yaml"]
    assert found.kind == "dataset" and found.left_out == {"decisions/": "not what was kept"} and not found.notes
    (tmp_path / "s" / "data" / "part-00000.parquet").write_bytes(b"other")
    with pytest.raises(DiptychError, match="not as it was curated"):
        listing(tmp_path / "s")


def test_what_is_no_export_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("name: clip")
    with pytest.raises(DiptychError, match="is a run: export it first"):
        listing(tmp_path / "run")
    with pytest.raises(DiptychError, match="neither an export"):
        listing(tmp_path)
    folder = an_export(tmp_path / "e")
    (tmp_path / "outside.json").write_text("{}")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(tmp_path / "outside.json")
    made = json.loads((folder / "export.json").read_text())
    made["files"]["config.json"] = blake2b(tmp_path / "outside.json")
    (folder / "export.json").write_text(json.dumps(made))
    with pytest.raises(DiptychError, match="a link to a place outside"):
        listing(folder)


def test_places_on_this_machine_are_pointed_out(tmp_path: Path) -> None:
    folder = an_export(tmp_path / "e")
    (folder / "README.md").write_text("license: mit\ntrained on /home/ada/photos, with care")
    assert listing(folder).notes == ("these files name places on this machine: README.md (/home/ada/photos)",)


def test_names_and_hashes(tmp_path: Path) -> None:
    assert checked("hf:ada/clip.v1") == "ada/clip.v1"
    for wrong in ("clip", "ada/", "ada/b/c", "../x/y", "ada/ clip"):
        with pytest.raises(DiptychError, match="OWNER/NAME"):
            checked(wrong)
    (tmp_path / "f").write_bytes(b"hello\n")
    assert git_oid(tmp_path / "f") == "ce013625030ba8dba906f756967f9e9ca394464a"  # `git hash-object` of this content


def test_groups_are_small_enough_to_resume(tmp_path: Path) -> None:
    folder = an_export(tmp_path / "e")
    some = listing(folder).files[0]
    assert [len(g) for g in _groups([some] * 130)] == [64, 64, 2]


def test_dry_run_sends_nothing(cli: Cli, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    done = cli("push", an_export(tmp_path / "e"), "ada/clip", "--dry-run")
    assert done.code == 0 and "model.safetensors" in done.out and "private" in done.out and "nothing was sent" in done.out
    assert not hub.log and not hub.repos


def test_push_is_private_complete_and_quiet_about_the_token(cli: Cli, hub: Hub, tmp_path: Path) -> None:
    folder = an_export(tmp_path / "e")
    (folder / ".env").write_text("SECRET=1")
    done = cli("push", folder, "ada/clip")
    repo = hub.repos["model", "ada/clip"]
    assert done.code == 0 and repo.private and "; private" in done.out and TOKEN not in done.all
    sent = {name: data for name, data in repo.files.items() if name != ".gitattributes"}
    names = ("README.md", "config.json", "export.json", "model.safetensors")
    assert sent == {name: (folder / name).read_bytes() for name in names} and len(hub.uploads) == 1
    again = json.loads(cli("push", folder, "ada/clip", "--json").out)
    assert again["sent"] == [] and len(again["kept"]) == 4 and len(hub.uploads) == 1 and len(repo.commits) == 1


def test_a_stopped_push_goes_on(cli: Cli, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diptych.inference.hub.push.AT_ONCE", 2)
    folder = an_export(tmp_path / "e")
    hub.fail_at = "objects/batch"  # config.json and export.json are there, the weights are not
    stopped = cli("push", folder, "ada/clip")
    there = set(hub.repos["model", "ada/clip"].files)
    assert stopped.code == 1 and "answered 400" in stopped.err and "run the same command again" in stopped.err
    assert there == {".gitattributes", "config.json", "export.json"}
    done = json.loads(cli("push", folder, "ada/clip", "--json").out)
    assert done["sent"] == ["README.md", "model.safetensors"] and done["kept"] == ["config.json", "export.json"]


def test_a_file_that_changed_after_it_was_listed_is_not_sent(hub: Hub, tmp_path: Path) -> None:
    from diptych.inference.hub.push import push

    files = listing(an_export(tmp_path / "e"))
    (tmp_path / "e" / "config.json").write_text('{"a": 3}')
    with pytest.raises(DiptychError, match="config.json has changed since it was listed"):
        push(files, "ada/clip")
    assert set(hub.repos["model", "ada/clip"].files) == {".gitattributes"}


def test_a_name_that_is_taken(cli: Cli, hub: Hub, tmp_path: Path) -> None:
    folder = an_export(tmp_path / "e")
    repo = hub.add("ada/clip", {"weights.bin": b"theirs", "config.json": b"{}"}, private=True)
    refused = cli("push", folder, "ada/clip")
    assert refused.code == 1 and "the name is taken" in refused.err and "--replace" in refused.err
    assert repo.files == {"weights.bin": b"theirs", "config.json": b"{}"}
    done = cli("push", folder, "ada/clip", "--replace")
    assert done.code == 0 and repo.files["weights.bin"] == b"theirs" and repo.files["config.json"] == b'{"a": 1}'
    assert "not of this directory: weights.bin" in done.err
    hub.add("ada/open", {}, private=False)
    assert "is public; add --public" in cli("push", folder, "ada/open").err and not hub.repos["model", "ada/open"].files
    assert cli("push", folder, "ada/open", "--public").code == 0 and hub.repos["model", "ada/open"].files


def test_clear_errors(cli: Cli, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = an_export(tmp_path / "e")
    assert "'write'" in cli("push", folder, "grace/clip").err  # not one's own namespace: 403
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrong")
    wrong = cli("push", folder, "ada/clip")
    assert wrong.code == 1 and "does not accept the token" in wrong.err and "hf_wrong" not in wrong.all
    monkeypatch.delenv("HF_TOKEN")
    none = cli("push", folder, "ada/clip")
    assert none.code == 1 and "no token" in none.err and "hf auth login" in none.err
    assert not hub.repos
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    lost = cli("push", folder, "ada/clip")
    assert lost.code == 1 and "no connection to http://127.0.0.1:9" in lost.err


def test_pull_brings_what_was_pushed(cli: Cli, hub: Hub, tmp_path: Path) -> None:
    folder = an_export(tmp_path / "e")
    cli("push", folder, "ada/clip", "--public")
    done = cli("pull", "hf:ada/clip", "--out", tmp_path / "there")
    assert done.code == 0 and "an export, 4 files checked" in done.out and f"diptych evaluate hf:{tmp_path / 'there'}" in done.out
    for name in ("README.md", "config.json", "export.json", "model.safetensors"):
        assert (tmp_path / "there" / name).read_bytes() == (folder / name).read_bytes()
    before = len([call for call in hub.log if "/resolve/" in call and call.startswith("GET")])
    assert cli("pull", "hf:ada/clip", "--out", tmp_path / "there").code == 0  # nothing is fetched again
    assert len([call for call in hub.log if "/resolve/" in call and call.startswith("GET")]) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    assert "was not made by `diptych pull`" in cli("pull", "hf:ada/clip", "--out", tmp_path / "mine").err
    assert "no model or dataset of that name" in cli("pull", "hf:ada/gone", "--out", tmp_path / "x").err
    assert "no revision 'v9'" in cli("pull", "hf:ada/clip@v9", "--out", tmp_path / "y").err


def test_pull_of_a_curated_set_and_of_damaged_files(cli: Cli, hub: Hub, tmp_path: Path) -> None:
    cli("push", a_set(tmp_path / "s"), "ada/few")
    done = cli("pull", "hf:ada/few", "--out", tmp_path / "t")
    assert done.code == 0 and f"--data 'parquet:{tmp_path / 't'}/data/*.parquet'" in done.out
    assert not (tmp_path / "t" / "decisions").exists()
    hub.repos["dataset", "ada/few"].files["data/part-00000.parquet"] = b"x" * 5000
    assert "not as it was curated" in cli("pull", "hf:ada/few", "--out", tmp_path / "u").err
