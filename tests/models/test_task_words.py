"""minigpt-v2: words that say the task, in training and when the model is asked; four image tokens in one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from diptych.core.errors import DiptychError
from diptych.core.sample import Turn
from diptych.data.conversations.template import Chat
from diptych.data.conversations.turns import question
from diptych.models.pretrained.tokenizer import tiny_tokenizer
from diptych.training.start.setup import chat_of
from frozen_fixture import CAPTIONS, LM, TOWER, built, captioned, connector, learned, requested, seen
from plain_fixture import f64, linear

TASKS = {"describe the picture.": "[caption]", "": "[vqa]"}


def test_the_word_of_the_task_stands_behind_the_images() -> None:
    chat = Chat(tiny_tokenizer(CAPTIONS * 3, 300), 2, identifiers=TASKS)
    plain = Chat(tiny_tokenizer(CAPTIONS * 3, 300), 2)
    answer = Turn("assistant", "a key")
    for given, said in [
        (question("describe the picture."), "<image>\n[caption] describe the picture."),
        (question("how many keys?", 2), "<image>\n<image>\n[vqa] how many keys?"),
        (question("[refer] the key"), "<image>\n[refer] the key"),
        (Turn("user", "and now?"), "[vqa] and now?"),
    ]:
        assert chat.document([given, answer]) == plain.document([Turn("user", said), answer])
        assert chat.document([given], ask=True) == plain.document([Turn("user", said)], ask=True)  # asked as in training
    assert Chat(tiny_tokenizer(CAPTIONS * 3, 300), 2, identifiers={"": ""}).identified(question("one")) == question("one")


def test_the_recipes_words_are_in_training_and_inference() -> None:
    recipe, model, objectives = built("minigpt-v2", "parts.connector.together=3", "adapters.lm.rank=2")
    assert chat_of(recipe, model).identifiers == TASKS and not chat_of(built("llava-instruct")[0], model).identifiers
    both = captioned(model).with_(**requested(model, ["what is there?"] * len(CAPTIONS), CAPTIONS).fields)
    for stage in range(3):
        losses, changed = learned(recipe, model, objectives, both, stage, steps=12, lr=3e-3)
        assert losses[-1] < losses[0] and all(n.startswith("parts.connector") or "lora_" in n for n in changed)


def test_neighbours_become_one_token() -> None:
    own, x = connector("neighbours", together=4), seen()
    found, rows = f64(own(x)), f64(x)
    assert found.shape == (2, 4, LM) and own.tokens == 4 and own.layer.in_features == 4 * TOWER
    for k in range(4):
        np.testing.assert_allclose(found[1, k], linear(own.layer, np.concatenate(list(rows[1, 1 + 4 * k : 5 + 4 * k]))), atol=1e-10)
    assert torch.autograd.gradcheck(own, (x[:1].requires_grad_(),))
    with pytest.raises(DiptychError, match=r"parts\.connector: together: 3 does not divide the 16 patches"):
        connector("neighbours", together=3)


def test_an_option_that_is_none_is_refused() -> None:
    from diptych.data.fields import options_of

    wrong: Any = {"turns": type("Spec", (), {"kind": "turns", "options": {"identifierz": {}}})()}
    with pytest.raises(DiptychError, match=r"data\.fields\.turns: unknown option 'identifierz'"):
        options_of("turns", wrong)
