"""Conversations in rows: what packing may and may not change, and what answers cost."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
import torch

from batch_fixture import batch_of
from conversations_fixture import Talker, chat, table
from diptych.core.batch import Turns
from diptych.data.conversations.rows import best_fit, laid_out
from diptych.data.conversations.template import Document
from diptych.data.fields import Draw
from diptych.data.fields.turns import TurnsField


def plain_best_fit(lengths: list[int], room: int) -> list[list[int]]:
    """Word by word: longest first, the fullest row that has room, else a new one."""
    rows: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fits = [(room - sum(lengths[j] for j in row), r) for r, row in enumerate(rows)]
        fits = [(left, r) for left, r in fits if left >= lengths[i]]
        if fits:
            rows[min(fits)[1]].append(i)
        else:
            rows.append([i])
    return sorted(sorted(row) for row in rows)


def test_best_fit_is_that_of_the_definition() -> None:
    rng = random.Random(0)
    for _ in range(200):
        lengths = [rng.randint(1, 60) for _ in range(rng.randint(1, 40))]
        rows = best_fit(lengths, 64)
        assert rows == plain_best_fit(lengths, 64)
        assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
        assert all(sum(lengths[i] for i in row) <= 64 for row in rows)


def test_rows_as_laid_out() -> None:
    documents = [Document([5, 6, 7], [True, False, True], 0), Document([8, 9], [False, True], 0), Document([4], [True], 0)]
    ids, mask, learned, positions = laid_out(documents, [[0, 1], [2]], pad=0)
    assert ids.tolist() == [[5, 6, 7, 8, 9], [4, 0, 0, 0, 0]]
    assert mask.tolist() == [[True] * 5, [True] + [False] * 4]
    assert learned.tolist() == [[False, False, True, False, True], [False] * 5], "nothing stands before a first token"
    assert positions.tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return table(tmp_path_factory.mktemp("talk"))


@pytest.fixture(scope="module")
def talkers(address: str) -> tuple[Talker, Talker]:
    """The same model and samples, padded and packed."""
    return Talker(address), Talker(address, 6, True)


def field_of(talker: Talker) -> TurnsField:
    field = talker.loader.fields["turns"]
    assert isinstance(field, TurnsField)
    return field


def test_the_loss_is_that_of_transformers_one_conversation_at_a_time(talkers: tuple[Talker, Talker]) -> None:
    """Reference: the language model's own loss of each conversation alone, labels −100 where nothing is learned, weighed by
    tokens."""
    for talker in talkers:
        batch, lm = talker.batch(), talker.model.part("lm")
        ours = float(talker.objectives["answers"](talker.model.encode(batch)).detach())
        total, tokens = 0.0, 0
        for place in range(6):
            sample, fitted = talker.loader._read(place)
            document = field_of(talker)._lesson(Draw(0, place, sample, fitted))
            images = fitted["turns"]
            ids = torch.tensor(document.ids)
            words = lm.lm.embed(ids.clamp_min(0)[None]).clone()
            if images:
                pixels = torch.stack([torch.from_numpy(i).permute(2, 0, 1).float() / 127.5 - 1 for i in images])
                prefix = talker.model.encode(batch_of(pixels=pixels))["image.prefix"]
                words[0, ids < 0] = prefix.flatten(0, 1) * lm.scale
            learned = torch.tensor(document.learned)
            learned[0] = False
            labels = torch.where(learned, ids, -100)
            n = int(learned.sum())
            total += n * float(lm.lm.model(inputs_embeds=words, labels=labels[None]).loss.detach())
            tokens += n
        assert ours == pytest.approx(total / tokens, rel=1e-5)
        assert talker.objectives["answers"].terms(talker.model.encode(batch)) == tokens


def test_packed_and_padded_have_one_loss_and_one_gradient(talkers: tuple[Talker, Talker]) -> None:
    padded, packed = talkers
    assert len(packed.batch()["turns"]) < len(padded.batch()["turns"]) == 6
    assert packed.batch().size == padded.batch().size == 6
    (plain, expected), (ours, gradients) = padded.gradients(None), packed.gradients(None)
    assert ours == pytest.approx(plain, rel=1e-5)
    assert expected.keys() == gradients.keys() and len(gradients) > 3
    for name, gradient in expected.items():
        assert (gradients[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-8, name


@pytest.mark.parametrize("which", [0, 1], ids=["padded", "packed"])
@pytest.mark.parametrize("micro", [1, 2, 3])
def test_micro_batches_are_exact(which: int, micro: int, talkers: tuple[Talker, Talker]) -> None:
    """Pieces with images and without, with few learned tokens and many."""
    talker = talkers[which]
    (plain, expected), (ours, gradients) = talker.gradients(None), talker.gradients(micro)
    assert ours == pytest.approx(plain, rel=1e-5)
    for name, gradient in expected.items():
        assert (gradients[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-8, name


def test_one_conversation_in_a_row_knows_nothing_of_the_others(talkers: tuple[Talker, Talker]) -> None:
    talker = talkers[1]
    batch = talker.batch()
    turns = batch["turns"]
    lm = talker.model.part("lm").eval()
    shown = talker.model.encode(batch)["turns.images.prefix"]
    hidden = lm.lm.documents(lm.words_and_images(turns.ids, shown), turns.positions)
    r = max(range(len(turns.ids)), key=lambda r: int((turns.positions[r] == 0).sum()))
    starts = [*torch.nonzero(turns.positions[r] == 0).flatten().tolist(), int(turns.mask[r].sum())]
    assert len(starts) > 3
    for first, end in pairwise(starts):
        changed = turns.ids.clone()
        words = changed[r, first:end] >= 0
        changed[r, first:end][words] = (changed[r, first:end][words] + 7) % lm.lm.vocabulary
        changed[r, first:end] = torch.where(words, changed[r, first:end], turns.ids[r, first:end])
        again = lm.lm.documents(lm.words_and_images(changed, shown), turns.positions)
        elsewhere = torch.ones_like(turns.mask)
        elsewhere[r, first:end] = False
        elsewhere &= turns.mask
        torch.testing.assert_close(again[elsewhere], hidden[elsewhere], atol=1e-6, rtol=1e-6)
        assert (again[r, first:end] - hidden[r, first:end]).abs().max() > 1e-3
    talker.model.train()


def test_each_image_stands_where_its_conversation_shows_it(talkers: tuple[Talker, Talker]) -> None:
    """However rows are packed, the k-th run of image tokens is of the k-th image of the batch."""
    padded, packed = talkers[0].batch()["turns"], talkers[1].batch()["turns"]
    N = talkers[0].model.part("connector").tokens
    for turns in (padded, packed):
        assert int((turns.ids < 0).sum()) == N * len(turns.images.pixels) == 6 * N

    def colours(turns: Turns) -> list[tuple[float, ...]]:
        assert turns.images is not None
        return sorted(tuple(np.round(image.float().mean((1, 2)).tolist(), 3)) for image in turns.images.pixels)

    assert colours(padded) == colours(packed)
    talker, marks = talkers[0], torch.arange(6.0)[:, None, None].expand(6, N, talkers[0].model.part("lm").width) + 1
    lm = talker.model.part("lm")
    mixed = lm.words_and_images(packed.ids, marks / lm.scale)
    assert torch.allclose(mixed[packed.ids < 0][:, 0], torch.arange(6.0).repeat_interleave(N) + 1, atol=1e-5)


def test_a_batch_is_the_same_whenever_it_is_drawn(address: str) -> None:
    first, again = Talker(address, 4, True), Talker(address, 4, True)
    for step in (0, 3):
        a, b = first.loader.batch(step), again.loader.batch(step)
        assert a.ids == b.ids and torch.equal(a["turns"].ids, b["turns"].ids)
        assert torch.equal(a["turns"].positions, b["turns"].positions)
    assert first.loader.batch(0).ids != first.loader.batch(1).ids


def test_what_was_cut_is_recorded(address: str) -> None:
    talker = Talker(address)
    longest = int(talker.batch()["turns"].mask.sum(1).max())
    assert not talker.loader.problems
    field_of(talker).chat.room = longest - 3
    talker.batch()
    assert [p.reason for p in talker.loader.problems.values()] == [f"cut to {longest - 3} of its {longest} tokens"]


def test_a_document_longer_than_a_row_has_one_to_itself() -> None:
    assert best_fit([70, 3, 64], 64) == [[0], [1], [2]]
    assert chat(None).room == 512
