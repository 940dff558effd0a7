"""The first minutes: the greeting, the doctor, completion."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cli_fixture
from cli_fixture import Cli
from diptych.cli.start import checks, greet
from diptych.cli.start.checks import Finding, findings
from diptych.plan.memory import available_memory

cli = cli_fixture.cli


def test_alone_it_greets_and_names_commands_for_what_people_have(cli: Cli) -> None:
    outcome = cli()
    assert outcome.code == 0 and outcome.out.startswith("Diptych: ")
    assert "diptych demo" in outcome.out and "diptych --help" in outcome.out and len(outcome.out.splitlines()) < 40


def test_every_command_of_the_greeting_exists(cli: Cli) -> None:
    verbs = {step.command.split()[1] for start in greet.STARTS for step in start.steps}
    assert len(verbs) > 7
    for verb in sorted(verbs):
        assert cli(verb, "--help").code == 0, verb


@pytest.mark.parametrize(
    ("number", "place", "command"),
    [
        (1, "my photos", "diptych index folder:'my photos' --out my.index"),
        (2, "parts", "diptych data inspect classes:parts"),
        (3, "table.csv", "diptych data inspect csv:table.csv"),
        (3, "photos", "diptych data inspect folder:photos"),
        (3, "wds:a.tar", "diptych data inspect wds:a.tar"),
        (4, "", "diptych evaluate hf:openai/clip-vit-base-patch32"),
        (6, "ignored", "diptych doctor"),
    ],
)
def test_the_place_of_the_user_stands_in_the_commands(number: int, place: str, command: str) -> None:
    assert greet.steps_for(greet.STARTS[number - 1], place)[0].command == command


def test_at_a_terminal_it_asks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answers = iter(["2", "parts"])
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(greet.typer, "prompt", lambda *_, **__: next(answers))
    greet.greet()
    assert "diptych choose --data classes:parts --budget 10m" in capsys.readouterr().out


def test_the_doctor_prints_findings_and_its_status_tells_of_problems(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = cli("doctor", "--quick", "--json")
    found = json.loads(outcome.out)
    assert {"Python", "packages", "processors", "memory", "GPU", "disk", "cache", "weights", "extras"} <= {f["what"] for f in found}
    assert outcome.code == int(any(f["status"] == "problem" for f in found))
    monkeypatch.setattr(checks, "CHECKS", (lambda: iter([Finding("disk", "problem", "full", "make room")]),))
    outcome = cli("doctor", "--quick")
    assert outcome.code == 1 and "PROBLEM disk" in outcome.out and "→ make room" in outcome.out and "1 to mend" in outcome.out


def test_a_check_that_fails_costs_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken():
        raise RuntimeError("no such file")
        yield

    monkeypatch.setattr(checks, "CHECKS", (broken, lambda: iter([Finding("GPU", "ok", "none")])))
    first, second = findings(time_a_step=False)
    assert first.status == "problem" and "RuntimeError: no such file" in first.text and second.what == "GPU"


@pytest.mark.parametrize(
    ("limit", "used", "expected"), [("max", 5, 1000), ("300", 100, 200), ("5000000", 0, 1000 * 1024), ("10", 20, 0)]
)
def test_memory_is_the_least_of_machine_and_control_group(tmp_path: Path, limit: str, used: int, expected: int) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    1000 kB\n")
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text(str(used))
    free = available_memory(tmp_path / "meminfo", tmp_path)
    assert free == (1000 * 1024 if limit == "max" else expected)


def test_no_memory_is_known_on_other_systems(tmp_path: Path) -> None:
    assert available_memory(tmp_path / "none", tmp_path) is None


def test_room_that_is_short_or_closed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "not" / "yet"))
    monkeypatch.setattr(checks, "LITTLE_ROOM", 2**60)
    assert [f.status for f in checks.room()] == ["note", "note"]
    monkeypatch.setattr(checks.os, "access", lambda *_: False)
    assert [(f.status, f.remedy) for f in checks.room()] == [
        ("problem", "go to another directory"),
        ("problem", "set DIPTYCH_CACHE"),
    ]


def test_completion_can_be_installed(cli: Cli) -> None:
    assert "--install-completion" in cli("--help").out


def test_results_are_json_when_asked(cli: Cli, tmp_path: Path) -> None:
    names = {row["name"]: row for row in json.loads(cli("recipes", "--json").out)}
    assert {"clip", "conse"} <= set(names) and names["clip"]["paradigm"] == "contrastive" and "Radford" in names["clip"]["cite"]
    assert "negclip@tuned" in names["negclip"]["variants"]
    small = ["--set", "parts.vision.depth=1", "--set", "parts.text.depth=1", "--set", "stages.0.batch_size=8"]
    outcome = cli("train", "clip", "--data", "scenes:small?size=32", "--budget", "16 samples", "--out", "r", *small, "--json")
    assert outcome.code == 0 and json.loads(outcome.out)["samples"] == 16 and json.loads(outcome.out)["run"].endswith("r")


def test_adapting_gives_its_facts_as_json(cli: Cli, tmp_path: Path) -> None:
    for k, colour in enumerate(((200, 20, 20), (20, 20, 200))):
        for i in range(4):
            path = tmp_path / "parts" / f"class{k}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = np.random.default_rng(9 * k + i).integers(0, 40, (40, 40, 3)) + np.array(colour)
            Image.fromarray(picture.astype(np.uint8)).save(path)
    outcome = cli("adapt", "conse", "--way", "prototypes", "--data", f"classes:{tmp_path / 'parts'}", "--out", "a", "--json")
    assert outcome.code == 0, outcome.err
    made = json.loads(outcome.out)
    assert made["way"] == "prototypes" and made["path"].endswith("a") and "labels_to_check" in made
