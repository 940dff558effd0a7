"""Conversations: their forms, chat templates, what is learned of them, and what is told before any training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import sources_fixture
from conversations_fixture import (
    CHATML,
    COUNTING,
    GEMMA,
    LLAMA3,
    MISTRAL,
    SMALL,
    VICUNA,
    answers,
    chat,
    picture,
    said,
    table,
)
from diptych.config.recipe import load_recipe
from diptych.core.errors import DiptychError
from diptych.core.sample import Turn
from diptych.data.conversations.check import check_conversations
from diptych.data.conversations.template import IMAGE_ID
from diptych.data.conversations.turns import Mistake, turns_of
from diptych.data.sources import open_source

own_cache = sources_fixture.own_cache  # pytest finds it here
TALK = [
    Turn("system", "be brief."),
    Turn("user", "<image>\nwhat is it?"),
    Turn("assistant", "a fox"),
    Turn("user", "a fox"),  # the words of an answer in a question: found by place, not by looking for them
    Turn("assistant", "yes"),
]
WRITTEN = {  # what each format writes of it, the image left out, and what is to be learned
    CHATML: (
        "<|im_start|>system\nbe brief.<|im_end|>\n<|im_start|>user\n\nwhat is it?<|im_end|>\n<|im_start|>assistant\na "
        "fox<|im_end|>\n"
        "<|im_start|>user\na fox<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n",
        ["a fox<|im_end|>", "yes<|im_end|>"],
    ),
    LLAMA3: (
        "<s><|start_header_id|>system<|end_header_id|>\n\nbe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n\nwhat is it?"
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\na fox<|eot_id|><|start_header_id|>user<|end_header_id|>\n\na fox"
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nyes<|eot_id|>",
        ["a fox<|eot_id|>", "yes<|eot_id|>"],
    ),
    GEMMA: (
        "<s><start_of_turn>user\nbe brief.\n\n\nwhat is it?<end_of_turn>\n<start_of_turn>model\na fox<end_of_turn>\n"
        "<start_of_turn>user\na fox<end_of_turn>\n<start_of_turn>model\nyes<end_of_turn>\n",
        ["a fox<end_of_turn>", "yes<end_of_turn>"],
    ),
    VICUNA: (
        "be brief. USER: \nwhat is it? ASSISTANT: a fox</s>USER: a fox ASSISTANT: yes</s>",
        [" a fox</s>", " yes</s>"],
    ),
    MISTRAL: (
        "<s>[INST] be brief.\n\n\nwhat is it? [/INST] a fox</s>[INST] a fox [/INST] yes</s>",
        [" a fox</s>", " yes</s>"],
    ),
    None: (
        "<s>be brief.\nuser: \nwhat is it?\nassistant: a fox</s>\nuser: a fox\nassistant: yes</s>\n",
        [" a fox</s>", " yes</s>"],
    ),
}


@pytest.mark.parametrize("template", WRITTEN, ids=["chatml", "llama3", "gemma", "vicuna", "mistral", "none"])
def test_the_answers_alone_are_learned_in_any_format(template: str | None) -> None:
    whole, learned = WRITTEN[template]
    talk = chat(template)
    document = talk.document(TALK)
    assert said(talk, document.ids) == whole
    assert answers(talk, document) == learned
    assert document.ids.count(IMAGE_ID) == 3 and document.images == 1


@pytest.mark.parametrize("template", WRITTEN, ids=["chatml", "llama3", "gemma", "vicuna", "mistral", "none"])
def test_a_question_is_asked_to_the_token_as_it_was_learned(template: str | None) -> None:
    talk = chat(template)
    document, asked = talk.document(TALK), talk.document(TALK[:-1], ask=True)
    last = len(document) - 1 - document.learned[::-1].index(True)
    first = max(i for i in range(last + 1) if not document.learned[i]) + 1
    assert asked.ids == document.ids[:first]
    assert set(document.ids[first : last + 1]) & set(talk.ends)


def test_a_template_whose_beginnings_change_is_refused_with_the_place() -> None:
    with pytest.raises(Mistake, match=r"template mismatch at turn 2: .*1 of 1 user: .* against .*1 of 2 user"):
        chat(COUNTING).document([Turn("user", "a"), Turn("assistant", "b")] * 2)


def test_a_template_that_wants_parts_gets_them() -> None:
    parts = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}{{ p.text }}{% endfor %}<|im_end|>\n{% endfor %}"
    )
    talk = chat(parts + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
    assert answers(talk, talk.document(TALK)) == ["a fox<|im_end|>", "yes<|im_end|>"]


def test_a_template_that_writes_nothing_is_refused() -> None:
    with pytest.raises(DiptychError, match="chat template cannot be used: it does not write the content of the turns"):
        chat("hello")


def test_a_long_conversation_is_cut_but_never_an_image() -> None:
    turns = [Turn("user", "hello"), Turn("assistant", "good day"), Turn("user", "and <image>?"), Turn("assistant", "a fox")]
    whole = chat(CHATML).document(turns)
    at = whole.ids.index(IMAGE_ID)
    for room, kept in ((at + 3, at + 3), (at + 2, at), (at + 1, at), (at, at)):
        lesson = chat(CHATML, room=room).lesson(turns)
        assert lesson.ids == whole.ids[:kept] and lesson.images == (kept > at)
    with pytest.raises(Mistake, match=rf"{len(whole)} tokens, longer than the context of {at}; raise"):
        chat(CHATML, room=at, too_long="refuse").lesson(turns)


def test_nothing_to_learn_is_told() -> None:
    for talk, turns in (
        (chat(CHATML), [Turn("user", "hello")]),
        (chat(CHATML, room=20), [Turn("user", "a question far too long for that"), Turn("assistant", "yes")]),
    ):
        with pytest.raises(Mistake, match="no learned token at all: .* exactly 0"):
            talk.lesson(turns)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "no turns"),
        ("hello", "no turns: expected a list of them, found str"),
        ([{"from": "alien", "value": "hello"}], "turn 1: role 'alien'; expected"),
        ([{"from": "gpt", "value": "hello"}], "turn 1: expected the user's, found the assistant's"),
        ([{"from": "human", "value": "a"}, {"from": "human", "value": "b"}], "turn 2: expected the assistant's"),
        ([{"role": "user", "content": 3}], "turn 1: expected a text or a list of parts, found int"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "turn 1: a part of type 'audio'"),
    ],
)
def test_what_is_no_conversation_is_told_with_the_turn(given: Any, told: str) -> None:
    with pytest.raises(Mistake, match=told):
        turns_of(given)


def llava(folder: Path, **changes: Any) -> str:
    """LLaVA's JSON of one good conversation and one with changes."""
    image = picture(folder / "a.png", (9, 9, 9))
    good = {
        "id": "g",
        "image": image,
        "conversations": [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "dark"}],
    }
    (folder / "talk.json").write_text(json.dumps([good, {**good, "id": "b", **changes}]))
    return f"llava:{folder / 'talk.json'}"


def test_llava_json_and_a_table_say_the_same(tmp_path: Path) -> None:
    first = open_source(llava(tmp_path))[0]
    assert first.turns == [Turn("user", "<image>\nwhat?"), Turn("assistant", "dark")] and len(first.images) == 1
    content = [{"type": "image"}, {"type": "text", "text": "what?"}]
    row = {
        "id": "g",
        "images": ["a.png"],
        "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "dark"}],
    }
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    assert open_source(f"chat:{tmp_path / 't.jsonl'}")[0].turns == first.turns
    import pyarrow as pa
    import pyarrow.parquet as pq

    row["images"] = [{"bytes": (tmp_path / "a.png").read_bytes(), "path": None}]
    row["messages"] = [{"role": t.role, "content": t.text} for t in first.turns]
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "t.parquet")
    sample = open_source(f"chat:{tmp_path / 't.parquet'}")[0]
    assert sample.turns == first.turns and (sample.images[0] == first.images[0]).all()


@pytest.mark.usefixtures("own_cache")
def test_kept_hashes_of_remote_conversations_are_those_of_their_images() -> None:
    """Their files' state is not known, so nothing may be kept under it."""
    turns = [{"role": "user", "content": "<image><image>?"}, {"role": "assistant", "content": "x"}]
    for name, data in zip("abcd", map(sources_fixture.picture, range(4)), strict=True):
        sources_fixture.put(f"memory://talks/{name}.png", data)
    rows = [{"images": ["a.png", "b.png"], "messages": turns}, {"images": ["c.png", "d.png"], "messages": turns}]
    address = "chat:" + sources_fixture.put("memory://talks/t.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    first, again = (open_source(address).digests() for _ in range(2))
    assert first == again and len(set(first)) == 2


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"conversations": [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "dark"}]},
            "missing <image>: it has 1 image",
        ),
        ({"image": ["a.png", "a.png"]}, "image count mismatch: 1 times <image> in its turns, 2 images given"),
        ({"image": None}, "image count mismatch: 1 times <image> in its turns, 0 images given"),
    ],
)
def test_a_conversation_that_contradicts_itself_is_told_with_file_and_id(changes: Any, told: str, tmp_path: Path) -> None:
    address = llava(tmp_path, **changes)
    with pytest.raises(DiptychError, match=rf"talk\.json: 1 conversations contradict themselves.*\n  b: talk\.json: {told}"):
        open_source(address)
    source = open_source(f"{address}?broken=skip")
    assert [source[i].id for i in range(len(source))] == ["g"] and source.problems[0].item == "b"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["data.conversations.max_length=40"], r"\w+: \d+ tokens, longer than the context of 40"),
        (["data.conversations.max_length=8", "data.conversations.too_long=cut"], r"\w+: no learned token at all: .* exactly 0"),
    ],
)
def test_what_cannot_be_learned_stops_before_the_first_step(overrides: list[str], told: str, tmp_path: Path) -> None:
    from diptych.training.start.setup import set_up

    base = [*SMALL, f"data.train={table(tmp_path)}", "data.conversations.too_long=refuse"]
    with pytest.raises(DiptychError, match=rf"talk\.jsonl.*conversations cannot be learned from:(\n.*)*{told}"):
        set_up(load_recipe("llava-instruct", [*base, *overrides]))


def test_a_template_mismatch_names_file_and_sample(tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match=r"talk\.jsonl.*\n  none: template mismatch at turn 2"):
        check_conversations(open_source(table(tmp_path)), chat(COUNTING))


def test_scenes_hold_conversations_where_asked() -> None:
    plain, asked = open_source("scenes:small"), open_source("scenes:small?ask=3")
    assert plain[0].turns == []
    for i in range(20):
        sample = asked[i]
        assert turns_of([{"role": t.role, "content": t.text} for t in sample.turns]) == sample.turns and 2 <= len(sample.turns) <= 6
        known = {q["question"]: q["answer"] for q in sample.extra["questions"]}
        for question, answer in zip(sample.turns[::2], sample.turns[1::2], strict=True):
            words = question.text.removeprefix("<image>\n").removesuffix(" Answer the question using a single word or phrase.")
            assert known.get(words, sample.captions[0]) == answer.text
        assert sample.turns == asked[i].turns


def test_a_part_learns_at_a_rate_of_its_own() -> None:
    from diptych.training.optim import build_optimizer
    from diptych.training.start.setup import set_up

    chosen = ["stages.1.lr=1e-3", "stages.1.rates={lm: 0.1}", "stages.1.optimizer=adamw"]
    recipe = load_recipe("llava-instruct", [*SMALL, "data.train=scenes:small?ask=2", *chosen])
    model = set_up(recipe).model
    model.freeze({"vision"})
    rates = {
        id(p): g["lr"] for m in build_optimizer([model], recipe.stages[1]).members for g in m.param_groups for p in g["params"]
    }
    for part, rate in (("lm", 1e-4), ("connector", 1e-3)):
        assert {round(rates[id(p)], 9) for p in model.part(part).parameters()} == {rate}
    with pytest.raises(DiptychError, match=r"stages\.1\.rates: the recipe has no part 'ln'"):
        load_recipe("llava-instruct", ["stages.1.rates={ln: 0.1}"])
