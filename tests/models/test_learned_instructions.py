"""Instructions about scenes as batches of a run: their answers are what is learned, their pictures what is shown, the loss falls."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from conversations_fixture import Talker
from diptych.data.conversations.check import check_conversations
from diptych.data.conversations.template import IMAGE_ID
from diptych.data.fields.turns import TurnsField
from diptych.data.sources import open_source

ADDRESS = "mix:2*instruct:scenes:small?kinds=which,count,refuse+1*scenes:small?ask=2"


@pytest.fixture(scope="module")
def talker() -> Talker:
    return Talker(ADDRESS)


def test_answers_are_learned_and_every_picture_is_shown(talker: Talker) -> None:
    field = talker.loader.fields["turns"]
    assert isinstance(field, TurnsField)
    check_conversations(open_source("instruct:scenes:small"), field.chat)
    batch, source = talker.batch(), open_source(ADDRESS)
    numbers = [talker.loader.order[place] for place in range(6)]
    samples = [source[number] for number in numbers]
    assert sum(len(sample.images) for sample in samples) == len(batch["turns"].images.pixels) > len(samples)
    lessons = [field.chat.lesson(sample.turns) for sample in samples]
    assert int(batch["turns"].learned.sum()) == sum(sum(lesson.learned[1:]) for lesson in lessons)
    for sample, lesson in zip(samples, lessons, strict=True):
        begins = [yes and not before for before, yes in pairwise([False, *lesson.learned])]
        assert sum(begins) == sum(turn.role == "assistant" for turn in sample.turns) and lesson.images == len(sample.images)
        assert not any(yes for i, yes in zip(lesson.ids, lesson.learned, strict=True) if i == IMAGE_ID)


def test_the_loss_falls(talker: Talker) -> None:
    batch = talker.batch()
    optimizer = torch.optim.AdamW([p for p in talker.model.parameters() if p.requires_grad], lr=3e-2)
    losses = []
    for _ in range(8):
        loss = talker.objectives["answers"](talker.model.encode(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1
