"""Endpoints as they behave: they refuse single items, limit requests, think, and want other parameters. A server on this
machine."""

from __future__ import annotations

import base64
import io
import json
import re
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

import foreign_fixture as tiny
from diptych.benchmarks.run import evaluate, recompute
from diptych.benchmarks.tasks import task
from diptych.core.capabilities import Unanswered
from diptych.core.errors import DiptychError
from diptych.core.files import read_json, read_jsonl
from diptych.inference.foreign.asking import first_choice, seconds_after, text_of
from diptych.inference.foreign.endpoint import data_url
from diptych.inference.load import load
from foreign_fixture import said

FILTERED = (
    400,
    {},
    {"error": {"message": "The response was filtered by the content management policy.", "code": "content_filter"}},
)
GREY = [np.full((8, 8, 3), 10 * i, np.uint8) for i in range(6)]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were waited, without waiting."""
    found: list[float] = []
    monkeypatch.setattr("diptych.inference.foreign.asking.time.sleep", found.append)
    return found


def questions(folder: Path, n: int) -> str:
    """A file of n questions of POPE about two pictures, one question after another: <0>, <1> …"""
    for i in range(2):
        Image.fromarray(GREY[1 + i]).save(folder / f"{i}.png")
    rows = [
        {"question_id": i, "image": f"{i % 2}.png", "text": f"Is there a <{i}> in the image?", "label": ["yes", "no"][i // 2 % 2]}
        for i in range(n)
    ]
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"pope?file={folder}/q.jsonl"


def asked_for(body: dict[str, Any]) -> str:
    text: str = body["messages"][0]["content"][1]["text"]
    return text


def test_an_item_that_is_refused_is_recorded_and_the_others_go_on(tmp_path: Path, waits: list[float]) -> None:
    def answer(n: int, body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        return FILTERED if "<2>" in asked_for(body) else (200, {}, said("Yes"))

    pope = task(questions(tmp_path, 8))
    with tiny.endpoint(answer) as asked:
        model = load(f"openai:{asked.url}?model=m")
        found = evaluate(model, None, [pope], tmp_path / "out", key="k")
        before = len(asked)
        again = evaluate(model, None, [pope], tmp_path / "out", key="k")
        assert again.results == found.results and waits == []
        assert {re.findall(r"<\d>", asked_for(body))[0] for body in asked[before:]} == {"<2>"}, "nothing that has an answer"
    accuracy = found.results[0]
    assert (accuracy.n, accuracy.value, accuracy.unparsed, accuracy.band) == (8, 4 / 8, 1, (4 / 8, 5 / 8))
    records = {r["item"]: r for r in read_jsonl(tmp_path / "out/records/pope.jsonl")}
    assert len(records) == 8 and records["2"]["answer"] is None and "content management policy" in records["2"]["failed"]["correct"]
    assert [i for i, r in records.items() if "failed" in r] == ["2"]
    [note] = found.notes
    assert note["task"] == "pope" and note["note"].startswith("1 of 8 items have no answer; most often: status 400")
    assert [(p["item"], p["task"]) for p in read_jsonl(tmp_path / "out/problems.jsonl")] == [("2", "pope")]
    assert recompute(tmp_path / "out").notes == found.notes == read_json(tmp_path / "out/summary.json")["notes"]


@pytest.mark.parametrize(
    "trouble",
    [FILTERED, (400, {}, b"image not supported"), (200, {}, {"choices": [{"finish_reason": "content_filter", "message": {}}]})],
)
@pytest.mark.parametrize("kept", [True, False])
def test_the_same_command_asks_again_for_what_has_no_answer(
    tmp_path: Path, waits: list[float], trouble: tuple[int, dict[str, str], Any], kept: bool
) -> None:
    """Its reason is kept until there is an answer; also in folders of versions that kept no answers."""
    pope = task(questions(tmp_path, 4))
    fails: list[bool] = [True]

    def answer(n: int, body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        return trouble if "<2>" in asked_for(body) and fails[0] else (200, {}, said("Yes"))

    def run() -> tuple[list[str], dict[str, Any]]:
        """The questions that were asked, and the records."""
        before = len(asked)
        evaluate(load(f"openai:{asked.url}?model=m"), None, [pope], tmp_path / "out", key="k")
        rows = read_jsonl(tmp_path / "out/records/pope.jsonl")
        assert len({r["item"] for r in rows}) == len(rows) == 4
        return [re.findall(r"<\d>", asked_for(body))[0] for body in asked[before:]], {r["item"]: r for r in rows}

    with tiny.endpoint(answer) as asked:
        run()
        if not kept:
            (tmp_path / "out/answers.jsonl").unlink()
        again, records = run()
        assert "failed" in records["2"] and set(again) == {"<2>"}
        fails[0] = False
        again, records = run()
        assert set(again) == {"<2>"} and not any("failed" in r for r in records.values()) and records["2"]["answer"] == "Yes"
        assert not (tmp_path / "out/answers.jsonl").exists() and not read_jsonl(tmp_path / "out/problems.jsonl")
        assert run()[0] == [], "everything has an answer"


@pytest.mark.parametrize(
    "trouble",
    [
        (200, {}, {"choices": []}),
        (200, {}, {"error": {"message": "Rate limit exceeded", "code": 429}}),
        (200, {}, {"error": {"message": "x", "code": "rate_limit_exceeded"}}),
        (529, {}, b"overloaded"),
    ],
)
def test_what_passes_is_asked_again(trouble: tuple, waits: list[float]) -> None:
    with tiny.endpoint(lambda n, body: trouble if n % 2 else (200, {}, said("Yes"))) as asked:
        assert load(f"openai:{asked.url}?model=m&parallel=1").generate(GREY[:3]) == ["Yes"] * 3
        assert len(asked) == 6 and 0.5 in waits


def test_a_limit_is_waited_for_as_the_server_asks(waits: list[float]) -> None:
    """Longer than all retries take: seven refusals, then the answer."""
    replies = [(429, {"Retry-After": "7"}, b""), (429, {"retry-after-ms": "1500"}, b""), (503, {"Retry-After": "9"}, b"")]
    replies += [(429, {}, b"")] * 4
    with tiny.endpoint(lambda n, body: replies[n - 1] if n <= len(replies) else (200, {}, said("Yes"))) as asked:
        assert load(f"openai:{asked.url}?model=m&retries=1").generate(GREY[:1]) == ["Yes"]
        assert len(asked) == 8
    own = [w for w in waits if w in (7, 1.5, 9, 4, 8, 16, 32)]
    assert own == [7, 1.5, 9, 4, 8, 16, 32]


def test_a_limit_beyond_all_patience_ends_the_run_and_keeps_what_was_answered(tmp_path: Path, waits: list[float]) -> None:
    pope = task(questions(tmp_path, 8))
    limited = (429, {"Retry-After": "30"}, b"slow down")
    with tiny.endpoint(lambda n, body: (200, {}, said("Yes")) if n <= 14 else limited) as asked:
        model = load(f"openai:{asked.url}?model=m&parallel=2&patience=100&retries=2")
        with pytest.raises(DiptychError, match=r"status 429: slow down; gave up .* the same command goes on .*patience=SECONDS"):
            evaluate(model, None, [pope], tmp_path / "out", key="k")
    assert len(read_jsonl(tmp_path / "out/records/pope.jsonl")) == 4 and sum(w == 30 for w in waits) >= 3
    kept = tmp_path / "out/answers.jsonl"
    assert len(read_jsonl(kept)) == 14
    kept.write_text(kept.read_text() + '{"request": "half a li')
    message = "gave up after 1 attempts and 0 s"
    with tiny.endpoint(lambda n, body: (429, {"Retry-After": "3600"}, b"")) as asked, pytest.raises(DiptychError, match=message):
        load(f"openai:{asked.url}?model=m").generate(GREY[:1])
    with tiny.endpoint(lambda n, body: (200, {}, said("Yes"))) as asked:
        model.asking.url = f"{asked.url}/chat/completions"  # the same server at another port
        found = evaluate(model, None, [pope], tmp_path / "out", key="k")
        assert found.results[0].n == 8 and len(asked) == 24 - 14  # no answer is asked for twice
    assert not kept.exists()


def test_failures_of_items_and_failures_of_the_run(waits: list[float]) -> None:
    broken = (500, {}, b"<html>oops</html>")
    with tiny.endpoint(lambda n, body: broken if "2" in asked_for(body) else (200, {}, said("Yes"))) as asked:
        answers = load(f"openai:{asked.url}?model=m&parallel=1&retries=1").generate(GREY[:3], ["0", "1", "2"])
    assert answers == ["Yes", "Yes", ""] and isinstance(answers[2], Unanswered)
    assert answers[2].reason == "status 500: <html>oops</html>; gave up after 2 attempts"
    with tiny.endpoint(lambda n, body: (200, {}, said("Yes")) if n == 1 else broken) as asked:
        model = load(f"openai:{asked.url}?model=m&parallel=1&retries=0")
        with pytest.raises(DiptychError, match="status 500.*What was answered so far is kept"):
            model.generate(GREY[:1] * 30)
        assert len(asked) == 11  # ten in a row
    with tiny.endpoint(lambda n, body: (400, {}, b"bad image") if n == 1 else (200, {}, said("Yes"))) as asked:
        first = load(f"openai:{asked.url}?model=m&parallel=1").generate(GREY[:2])  # the first is the item's fault: another works
        assert first == ["", "Yes"]
    with pytest.raises(DiptychError, match="refused"):  # the server is gone in the middle
        model.url = model.asking.url = "http://127.0.0.1:9/v1"
        model.generate(GREY[:1])


def test_captions_and_requests_that_failed_are_noted(tmp_path: Path, waits: list[float]) -> None:
    from evaluation_fixture import Plain

    with tiny.endpoint(lambda n, body: FILTERED if n in (2, 3) else (200, {}, said("a thing"))) as asked:
        model = load(f"openai:{asked.url}?model=m&parallel=1")
        found = evaluate(model, Plain(), [task("captions?n=4")], tmp_path / "out", key="k")
        assert found.notes[0]["note"].startswith("1 of 4 items have no answer, 1 more none under a control")
        red = evaluate(model, None, [task("redteam")], tmp_path / "red", key="k")
        assert red.notes == []
    failed = [list(r["failed"]) for r in read_jsonl(tmp_path / "out/records/captions.jsonl") if "failed" in r]
    assert failed == [["generated_blind"], ["generated"]]  # the grey picture was asked about again for the second item


@pytest.mark.parametrize(
    ("message", "finish", "text"),
    [
        ({"content": " Yes "}, "stop", "Yes"),
        ({"content": [{"type": "text", "text": "Y"}, {"type": "image"}, {"type": "text", "text": "es"}]}, "stop", "Yes"),
        ({"content": None, "reasoning_content": "I see it. The answer is Yes"}, "stop", "I see it. The answer is Yes"),
        ({"content": "Yes", "reasoning_content": "No?"}, "stop", "Yes"),
        ({"content": "", "reasoning": "I see it. Yes, but"}, "length", "<think>I see it. Yes, but"),
        ({"content": None, "refusal": "I can't help with that."}, "stop", "I can't help with that."),
        ({"content": None}, "stop", ""),
    ],
)
def test_the_text_of_an_answer(message: dict[str, Any], finish: str, text: str) -> None:
    assert text_of({"message": message, "finish_reason": finish}) == text
    assert text_of({"text": "Yes"}) == "Yes"  # the older form of completions
    withheld = text_of({"message": {"content": None}, "finish_reason": "content_filter"})
    assert isinstance(withheld, Unanswered) and "content_filter" in withheld.reason


def test_thinking_is_not_read_as_the_answer(tmp_path: Path) -> None:
    pope = task(questions(tmp_path, 4))
    with tiny.endpoint(lambda n, body: (200, {}, said("<think>\nNo cat. Yes?\n</think>\n\nYes"))) as asked:
        found = evaluate(load(f"openai:{asked.url}?model=m"), None, [pope])
    assert {r.metric: r.value for r in found.results}["yes_ratio"] == 1 and found.results[0].unparsed == 0
    thought = {"choices": [{"message": {"role": "assistant", "content": None, "reasoning": "So yes"}, "finish_reason": "length"}]}
    with tiny.endpoint(lambda n, body: (200, {}, thought)) as asked:
        found = evaluate(load(f"openai:{asked.url}?model=m"), None, [pope])
    assert found.results[0].unparsed == 4
    assert [n["note"].partition(";")[0] for n in found.notes] == ["4 of 4 answers end within the thinking"]


def test_parameters_of_newer_models_are_options_of_the_address() -> None:
    def answer(n: int, body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        if "max_tokens" in body:
            return 400, {}, {"error": {"message": "'max_tokens' is not supported. Use 'max_completion_tokens' instead."}}
        if "temperature" in body:
            return 400, {}, {"error": {"message": "Unsupported value: 'temperature' does not support 0 with this model."}}
        return 200, {}, said("Yes")

    with tiny.endpoint(answer) as asked:
        with pytest.raises(DiptychError, match="add &tokens=max_completion_tokens to the address"):
            load(f"openai:{asked.url}?model=m").generate(GREY[:1])
        with pytest.raises(DiptychError, match="add &temperature=none to the address"):
            load(f"openai:{asked.url}?model=m&tokens=max_completion_tokens").generate(GREY[:1])
        more = quote('{"top_p": 0.9, "chat_template_kwargs": {"enable_thinking": false}}')
        address = f"openai:{asked.url}?model=m&tokens=max_completion_tokens&temperature=none&max_tokens=2000&effort=low&body={more}"
        model = load(address)
        assert model.generate(GREY[:1], "?", 16) == ["Yes"]
        body = {k: v for k, v in asked[-1].items() if k != "messages"}
        assert body == {
            "model": "m", "max_completion_tokens": 2000, "reasoning_effort": "low", "top_p": 0.9,
            "chat_template_kwargs": {"enable_thinking": False},
        }  # fmt: skip
        keys = {load(f"openai:{asked.url}?model=m{more}").key for more in ("", "&effort=low", "&temperature=1", "&image=png")}
        assert len(keys) == 4 and load(f"openai:{asked.url}?model=m&patience=9").key in keys
    for wrong, message in (("body=[1]", "expected a JSON object"), ("body={", "body: not JSON"), ("tokens=x", "tokens")):
        with pytest.raises(DiptychError, match=message):
            load(f"openai:http://localhost:1/v1?model=m&{wrong}")


def test_large_pictures_are_sent_as_bounded_jpegs() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 900, 3)).astype(np.uint8)
    url = data_url(noise, False, side=600, bytes=30_000)
    data = base64.b64decode(url.removeprefix("data:image/jpeg;base64,"))
    assert len(data) <= 30_000 and max(Image.open(io.BytesIO(data)).size) <= 600
    plain = base64.b64decode(data_url(noise, False).removeprefix("data:image/jpeg;base64,"))
    assert Image.open(io.BytesIO(plain)).size == (900, 300)
    for picture, lossless in ((GREY[1], False), (noise, True)):
        sent = data_url(picture, lossless).removeprefix("data:image/png;base64,")
        assert (np.asarray(Image.open(io.BytesIO(base64.b64decode(sent)))) == picture).all()


def test_how_long_a_server_asks_to_wait() -> None:
    assert seconds_after({"Retry-After": "2.5"}) == 2.5 and seconds_after({}) == 0 and seconds_after({"Retry-After": "soon"}) == 0
    assert 50 < seconds_after({"Retry-After": formatdate(time.time() + 60, usegmt=True)}) <= 61
    assert seconds_after({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert first_choice(200, {"error": {"code": "429"}})[0] == 429 and first_choice(200, {"error": "x"})[0] == 400
