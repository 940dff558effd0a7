"""Conversations by a model's own processor: which tokens are learned, as plain text and as trl has them; cutting, refusals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import talk_fixture
from diptych.core.errors import DiptychError
from diptych.core.sample import Captions, Conversation, Sample, Turn
from diptych.data.conversations.processed import MARKED, ChatProcessor
from diptych.data.conversations.template import PLAIN, Chat
from diptych.data.conversations.turns import Mistake
from diptych.data.fields.base import Draw
from diptych.data.fields.dialogue import DialogueField
from diptych.models.pretrained.processor import open_processor

END = {"idefics3": "<end_of_utterance>\n", "gemma3": "<end_of_turn>\n", "llava_next": "</s>"}  # what follows an answer
GAP = {"idefics3": " ", "llava_next": " "}  # what the template writes before one
TRAINING = {"qwen2_vl": "qwen2_5_vl", "idefics3": "smolvlm"}  # trl's templates by other names
RED, BLUE = talk_fixture.square("red"), talk_fixture.square("blue", (64, 40))
ONE = [Turn("user", "<image>\nwhat colour is it?"), Turn("assistant", "red")]
TWO = [
    Turn("user", "<image>\n<image>\nwhat colour is it?"), Turn("assistant", "red, red"),
    Turn("user", "is the second one the same?"), Turn("assistant", "no, it is blue"),
]  # fmt: skip
LATE = [
    Turn("user", "is it red?"),
    Turn("assistant", "is what red?"),
    Turn("user", "<image>\nthis."),
    Turn("assistant", "yes, red"),
]
NONE = [Turn("user", "is red the same?"), Turn("assistant", "yes")]
TALKS: list[tuple[list[Turn], list[np.ndarray]]] = [(ONE, [RED]), (TWO, [RED, BLUE]), (LATE, [RED]), (NONE, [])]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("talkers")
    return {name: make(root / name) for name, make in talk_fixture.FAMILIES.items()}


@pytest.fixture(scope="module")
def processors(made: dict[str, Path]) -> dict[str, ChatProcessor]:
    return {name: ChatProcessor(open_processor(str(path)), name) for name, path in made.items()}


@pytest.mark.parametrize("family", talk_fixture.FAMILIES)
def test_learned_are_the_words_of_the_assistant(family: str, processors: dict[str, ChatProcessor]) -> None:
    """Each run of learned tokens, as text, is an answer with its end mark; nothing else is learned."""
    chat = processors[family]
    made = chat.batch(TALKS)
    for row, (turns, _) in enumerate(TALKS):
        runs: list[list[int]] = []
        for k, (i, learned) in enumerate(zip(made.inputs["input_ids"][row].tolist(), made.learned[row].tolist(), strict=True)):
            if learned:
                runs += [] if k and made.learned[row, k - 1] else [[]]
                runs[-1].append(i)
        answers = [turn.text for turn in turns if turn.role == "assistant"]
        end = END.get(family, "<|im_end|>\n")
        assert [chat.tokenizer.decode(run) for run in runs] == [f"{GAP.get(family, '')}{a}{end}" for a in answers]


@pytest.mark.parametrize("family", talk_fixture.FAMILIES)
def test_labels_are_those_of_trl(family: str, processors: dict[str, ChatProcessor]) -> None:
    """Tokens, masks, pixels and labels of trl's collator with assistant_only_loss, by the marks of its own training template."""
    trl = pytest.importorskip("trl.trainer.sft_trainer")
    chat = processors[family]
    marked = talk_fixture.of_trl(f"{TRAINING.get(family, family)}_training")
    if chat.template == talk_fixture.PLAIN or family in ("llava", "internvl"):
        before, after = "{% for c in m.content %}", "<|im_end|>\n"
        marked = chat.template.replace(before, "{% if m.role == 'assistant' %}{% generation %}{% for c in m.content %}{{ c.text }}"
                                       f"{{% endfor %}}{after}{{% endgeneration %}}{{% else %}}{before}")  # fmt: skip
        marked = marked.replace(f"{after}{{% endfor %}}{{% if add", f"{after}{{% endif %}}{{% endfor %}}{{% if add")
    assert marked is not None and MARKED in marked
    collator = trl.DataCollatorForVisionLanguageModeling(chat.processor, assistant_only_loss=True, chat_template=marked)
    theirs = collator.torch_call([{"messages": messages(chat, turns), "images": pictures(images)} for turns, images in TALKS])
    ours = chat.batch(TALKS)
    assert set(theirs) - {"labels"} == set(ours.inputs)
    for name, value in ours.inputs.items():
        assert torch.equal(value, theirs[name]), name
    assert torch.equal(torch.where(ours.learned, ours.inputs["input_ids"], -100), theirs["labels"])


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_the_last_answer_is_the_completion_of_trl(family: str, processors: dict[str, ChatProcessor]) -> None:
    """With completion_only_loss, trl learns the last answer alone, tokenised apart from its prompt."""
    trl = pytest.importorskip("trl.trainer.sft_trainer")
    chat = processors[family]
    collator = trl.DataCollatorForVisionLanguageModeling(chat.processor, completion_only_loss=True)
    said = messages(chat, TWO)
    theirs = collator.torch_call([{"prompt": said[:-1], "completion": said[-1:], "images": pictures([RED, BLUE])}])
    ours = chat.batch([(TWO, [RED, BLUE])])
    learned = ours.learned[0].clone()
    learned[: int((~learned).nonzero().max()) + 1] = False  # all but the last answer
    assert torch.equal(ours.inputs["input_ids"], theirs["input_ids"])
    assert torch.equal(torch.where(learned[None], ours.inputs["input_ids"], -100), theirs["labels"])


def messages(chat: ChatProcessor, turns: Sequence[Turn]) -> list[dict[str, Any]]:
    return [chat.message(turn) for turn in turns]


def pictures(images: Sequence[np.ndarray]) -> list[Any]:
    from PIL import Image

    return [Image.fromarray(image) for image in images]


def test_a_prompt_has_the_tokens_of_training(processors: dict[str, ChatProcessor]) -> None:
    for name, chat in processors.items():
        whole, asked = chat.batch([(TWO, [RED, BLUE])]), chat.batch([(TWO[:-1], [RED, BLUE])], ask=True, side="left")
        ids, prompt = whole.inputs["input_ids"][0].tolist(), asked.inputs["input_ids"][0].tolist()
        assert ids[: len(prompt)] == prompt, name
        assert whole.learned[0].nonzero()[-1] >= len(prompt) and not whole.learned[0, len(prompt) - 1], name


def test_marks_of_a_template_count(processors: dict[str, ChatProcessor], monkeypatch: pytest.MonkeyPatch) -> None:
    chat = processors["llava"]
    without = chat.spans(TWO)
    written = "{% if m.role == 'assistant' %}{% generation %}{{ m.content[0].text }}{% endgeneration %}{% else %}"
    marked = talk_fixture.PLAIN.replace("{% for c in m.content %}", written + "{% for c in m.content %}")
    monkeypatch.setattr(chat, "template", marked.replace("<|im_end|>", "{% endif %}<|im_end|>"))
    text, spans = chat.spans(TWO)
    assert text == without[0]
    assert [text[a:b] for a, b in spans] == ["red, red", "no, it is blue"]  # without the end mark, as the template says


def test_a_system_turn_and_templates_of_texts(processors: dict[str, ChatProcessor], monkeypatch: pytest.MonkeyPatch) -> None:
    system = [Turn("system", "be brief"), *ONE]
    assert "system\nbe brief" in processors["qwen2_5_vl"].spans(system)[0]
    assert "user\nbe brief\n\n" in processors["gemma3"].spans(system)[0]  # its template has no place for one
    chat = processors["llava"]
    tokenizer = chat.tokenizer
    tokenizer_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    monkeypatch.setattr(chat.processor, "chat_template", tokenizer_template)
    plain = ChatProcessor(chat.processor, "texts")
    assert not plain.in_parts
    text, spans = plain.spans(ONE)
    assert text.startswith("user: <image>\nwhat colour") and [text[a:b] for a, b in spans] == [f"red{tokenizer.eos_token}"]


def test_the_spans_of_our_own_template_are_as_before() -> None:
    """``Chat`` and ``ChatProcessor`` share the code that finds answers; a run of ours does not learn the line end."""
    from conversations_fixture import CHATML, chat

    ours: Chat = chat(CHATML)
    text, spans = ours.spans(NONE)
    assert [text[a:b] for a, b in spans] == ["yes<|im_end|>"]
    assert PLAIN != CHATML


def field(chat: ChatProcessor, **options: Any) -> DialogueField:
    return DialogueField("dialogue", chat, "mine.json, ", **options)


def rows(field: DialogueField, *talks: tuple[list[Turn], list[np.ndarray]]) -> list[Draw]:
    samples = [Sample(f"talk-{k}", turns=Conversation(turns, images)) for k, (turns, images) in enumerate(talks)]
    return [Draw(0, k, s, {"dialogue": field.fit(s, lambda: None)}) for k, s in enumerate(samples)]  # type: ignore[arg-type, return-value]


def test_long_conversations_lose_their_last_exchange(processors: dict[str, ChatProcessor]) -> None:
    chat = processors["llava"]
    whole = chat.batch([(TWO, [RED, BLUE])])
    length = whole.inputs["input_ids"].shape[1]
    cut = field(chat, max_length=length - 1)
    noted: list[Any] = []
    cut.note = noted.append
    batch = cut.collate(rows(cut, (TWO, [RED, BLUE]), (NONE, [])))
    first = chat.batch([(TWO[:2], [RED, BLUE])])
    assert batch.ids[0, : first.inputs["input_ids"].shape[1]].tolist() == first.inputs["input_ids"][0].tolist()
    assert int(batch.learned[0].sum()) == int(first.learned.sum())
    assert batch.more["pixel_values"].shape[0] == 2 and "2 of its 4 turns" in noted[0].reason
    late = cut.collate(rows(field(chat, max_length=40), (LATE, [RED])))  # the picture is in the exchange that is cut
    assert "pixel_values" in late.more or late.ids.shape[1] <= length


def test_a_long_answer_is_cut_but_never_an_image(processors: dict[str, ChatProcessor]) -> None:
    chat = processors["llava"]
    long = [ONE[0], Turn("assistant", "red " * 30)]
    whole = chat.batch([(long, [RED])])
    start = int(whole.learned[0].nonzero()[0])
    kept = field(chat, max_length=start + 5)
    batch = kept.collate(rows(kept, (long, [RED])))
    assert batch.ids.shape == (1, start + 5) and int(batch.learned.sum()) == 5
    tight = field(chat, max_length=8)
    with pytest.raises(
        DiptychError, match=r"mine.json, talk-0: no room for its images and an answer in 8 tokens; raise .*max_length"
    ):
        tight.collate(rows(tight, (long, [RED])))
    strict = field(chat, max_length=start + 5, too_long="refuse")
    with pytest.raises(DiptychError, match=r"talk-0: longer than .*too_long: cut"):
        strict.collate(rows(strict, (long, [RED])))


def test_what_cannot_be_used_is_named(processors: dict[str, ChatProcessor]) -> None:
    chat = processors["llava"]
    whole = field(chat)
    with pytest.raises(DiptychError, match="talk-1: image count mismatch: 1 times <image> in its turns, 2 images given"):
        whole.collate(rows(whole, (NONE, []), (ONE, [RED, BLUE])))
    with pytest.raises(Mistake, match="no answer"):
        chat.lesson(ONE[:1])
    with pytest.raises(Mistake, match="alternate|refuses"):
        processors["gemma3"].spans([ONE[0], ONE[0], ONE[1]])


def test_captions_become_answers_and_batches_are_padded_without_effect(processors: dict[str, ChatProcessor]) -> None:
    chat = processors["qwen2_5_vl"]
    read = field(chat)
    sample = Sample("one", image=RED, text=Captions(["red"]))
    draw = Draw(0, 0, sample, {"dialogue": read.fit(sample, lambda: None)})  # type: ignore[arg-type, return-value]
    batch = read.collate([draw, *rows(read, (TWO, [RED, BLUE]))])
    assert chat.tokenizer.decode(batch.ids[0][batch.learned[0]]) == "red<|im_end|>\n"
    assert batch.count(0) == int(batch.mask.sum()) and len(batch) == 2
    assert batch.to("cpu").more["pixel_values"].equal(batch.more["pixel_values"])
