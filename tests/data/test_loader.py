"""The order of samples: the same for any number of ranks, micro-batches and workers."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import re
import signal
import threading
import time

import numpy as np
import pytest
import torch

from diptych.core.batch import Batch, floats
from diptych.core.errors import DiptychError
from diptych.core.sample import Sample, captioned
from diptych.data.fields import UNPAIRED
from diptych.data.loader import loader_for
from diptych.data.order import BLOCK, Epochs, Mixed, quotas
from diptych.data.source import BrokenItem, Problem
from diptych.data.text import Tokenizer

TOKENIZER = Tokenizer.train([f"number {i} of many" for i in range(30)], 400, 12)


class Numbers:
    """n pictures with captions, meanings and some negatives; number 4 is broken."""

    address, problems = "numbers:", []

    def __init__(self, n=23):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if i == 4:
            raise BrokenItem("four", "made so")
        image = np.random.default_rng(i).integers(0, 256, (24, 30, 3), dtype=np.uint8)
        wrong = f"number {i} of none" if i % 2 else ""
        text = captioned([f"number {i} of many", f"the number {i}"], [f"m{i // 2}"] * 2)
        return Sample(str(i), image=image, text=text, negatives=[wrong, ""])

    def fingerprint(self):
        return "numbers"

    def split(self, name):
        return self


def loader(**options):
    options = {"seed": 3, "augment": "crop", "fields": ("image", "text", "negatives"), **options}
    return loader_for(Numbers(), TOKENIZER, 16, 12, **options)


def joined(batches: list[Batch]) -> dict:
    """Slices of one batch put together, texts without their padding."""
    starts = np.cumsum([0, *(b.size for b in batches)])

    def texts(name):
        found = [b[name] for b in batches if name in b]  # a slice may have no negatives
        return [row[m].tolist() for t in found for row, m in zip(t.ids, t.mask, strict=True)]

    return {
        "ids": [i for b in batches for i in b.ids],
        "pixels": torch.cat([b["image"].pixels for b in batches]),
        "text": texts("text"),
        "negatives": texts("negatives"),
        "rows": torch.cat(
            [torch.empty(0, dtype=torch.int64)]
            + [b["negatives"].owner + s for b, s in zip(batches, starts, strict=False) if "negatives" in b]
        ),
        "meaning": torch.cat([b["text"].meaning for b in batches]),
    }


def assert_same(a: dict, b: dict) -> None:
    for name, value in a.items():
        assert torch.equal(value, b[name]) if isinstance(value, torch.Tensor) else value == b[name], name


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("ranks", "micro"), [(1, None), (2, None), (4, 2), (1, 5)])
def test_ranks_micro_batches_and_workers_do_not_change_the_global_batch(ranks, micro, workers):
    share = 12 // ranks
    streams = [loader(workers=workers).stream(1, r * share, (r + 1) * share, micro) for r in range(ranks)]
    pieces = -(-share // micro) if micro else 1
    plain = loader()
    for step in (1, 2):
        read = [next(stream) for stream in streams for _ in range(pieces)]
        assert_same(joined([plain.batch(step)]), joined(read))
    for stream in streams:
        stream.close()


def test_a_thread_ahead_gives_the_same_and_waiting_is_counted():
    one, plain = loader(), loader()
    stream = one.stream(7, ahead=True)
    for step in (7, 8, 9):
        assert_same(joined([plain.batch(step)]), joined([next(stream)]))
    stream.close()
    assert one.waited > 0


def test_the_main_process_may_read_too_while_workers_do():
    """As the second pass over a large batch does; its threads must not be taken for the workers' own."""
    one, plain = loader(workers=2), loader()
    one.batch(0)  # starts threads before the workers are forked
    stream = one.stream(1)
    for step in (1, 2):
        assert_same(joined([plain.batch(step)]), joined([next(stream)]))
        assert_same(joined([plain.rows(step, 3, 7)]), joined([one.rows(step, 3, 7)]))
    stream.close()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory is for a GPU")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_for_a_gpu_are_page_locked(workers):
    stream = loader(workers=workers).stream(0, ahead=True, pin=True)
    batch = next(stream)
    stream.close()
    assert (
        batch["image"].pixels.is_pinned()
        and batch["text"].ids.is_pinned()
        and batch.to("cuda")["image"].pixels.device.type == "cuda"
    )


def test_meanings_and_negatives_keep_their_places_in_slices():
    whole = loader().batch(0)
    assert whole["text"].meaning.dtype == torch.int64 and (whole["text"].meaning >= 0).all()
    for row, negative in zip(whole["negatives"].owner.tolist(), whole["negatives"].strings, strict=True):
        words = set(whole["text"].strings[row].split())
        assert len(words & set(negative.split())) >= 2, "a wrong version of that very caption"
    meanings = {}
    for step in range(4):
        batch = loader().batch(step)
        for name, number in zip(batch.ids, batch["text"].meaning.tolist(), strict=True):
            assert meanings.setdefault(int(name) // 2, number) == number
    assert len(set(meanings.values())) == len(meanings)


def test_broken_items_met_by_workers_are_recorded_in_the_main_process():
    one = loader(workers=2)
    stream = one.stream(0)
    for _ in range(2):
        next(stream)
    stream.close()
    assert [p.reason for p in one.problems.values()] == ["made so"]


class Others(Numbers):
    """Images without a partner; remembers which thread reads. Number 4 is broken, and one is missing from the start."""

    def __init__(self, n=17):
        super().__init__(n)
        self.problems, self.read_by = [Problem("gone", "there is no file")], set()

    def __getitem__(self, i):
        self.read_by.add(threading.get_ident())
        return super().__getitem__(i)


def with_others(workers=0):
    one = loader(workers=workers)
    for name, kind in UNPAIRED.items():
        one.add_unpaired(name, loader_for(Others(), TOKENIZER, 16, 12, seed=5, fields=(kind,)))
    return one


@pytest.mark.parametrize("workers", [0, 2])
def test_what_has_no_partner_joins_every_batch_and_its_problems_are_listed(workers):
    one, plain = with_others(workers), with_others()
    one.batch(0)  # starts threads before the workers are forked
    stream = one.stream(1, 0, 12, 5)
    for step in (1, 2):
        pieces, whole = [next(stream) for _ in range(3)], plain.batch(step)
        assert_same(joined([whole]), joined(pieces))
        assert torch.equal(whole["unpaired_image"].pixels, torch.cat([b["unpaired_image"].pixels for b in pieces]))
        assert whole["unpaired_text"].strings == sum((b["unpaired_text"].strings for b in pieces), ())
    stream.close()
    assert (whole["unpaired_image"].pixels != whole["image"].pixels).any()
    missing = {f"{name}/gone": "there is no file" for name in UNPAIRED}
    broken = {f"{name}/four": "made so" for name in UNPAIRED} | {"four": "made so"}
    assert {item: p.reason for item, p in one.problems.items()} == missing | broken
    assert all(item == p.item for item, p in one.problems.items())


def test_in_a_worker_no_loader_waits_for_threads_of_its_parent():
    one = with_others()
    others = [other.source for other in one.unpaired.values()]
    one.batch(0)
    assert all(source.read_by - {threading.get_ident()} for source in others), "threads read here"
    one.in_worker()
    for source in others:
        source.read_by.clear()
    one.batch(1)
    assert all(source.read_by == {threading.get_ident()} for source in others)


def test_a_loader_with_others_survives_pickling():
    one = pickle.loads(pickle.dumps(with_others()))
    assert torch.equal(one.batch(2)["unpaired_image"].pixels, with_others().batch(2)["unpaired_image"].pixels)
    for step in range(3):
        one.batch(step)
    assert "unpaired_image/four" in one.problems


def test_rows_outside_the_batch_are_refused():
    for start, stop in ((-1, 2), (3, 3), (0, 13)):
        with pytest.raises(ValueError):
            loader().rows(0, start, stop)


class Suicidal(Numbers):
    def __getitem__(self, i):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_noticed_at_the_next_batch_not_in_the_middle_of_a_step():
    stream = loader(workers=2).stream(0)
    next(stream)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGKILL)
    time.sleep(0.3)  # a step, which must not be torn
    with pytest.raises(DiptychError, match="was killed"):
        for _ in range(10):
            next(stream)


def test_a_killed_worker_is_named_with_the_remedy():
    stream = loader_for(Suicidal(), TOKENIZER, 16, 4, workers=1).stream(0)
    with pytest.raises(DiptychError, match=r"was killed .*--resume and fewer workers than data.workers=1"):
        next(stream)


def test_an_error_in_a_worker_reads_as_it_would_without_workers():
    class Empty(Numbers):
        def __getitem__(self, i):
            raise BrokenItem(str(i), "nothing here")

    messages = []
    for workers in (0, 1):
        stream = loader_for(Empty(), TOKENIZER, 16, 4, workers=workers).stream(0)
        with pytest.raises(DiptychError) as error:
            next(stream)
        messages.append(str(error.value))
    # Which sample is named depends on which of the batches that are read ahead fails first.
    plain = [re.sub(r"first: \d+:", "first: N:", message) for message in messages]
    assert plain[0] == plain[1] and "no usable sample among 23; first: N: nothing here" in plain[0]


def test_a_loader_survives_pickling_as_spawned_workers_need():
    assert_same(joined([loader().batch(2)]), joined([pickle.loads(pickle.dumps(loader())).batch(2)]))


def test_bytes_become_floats_once():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    once = floats(pixels)
    assert torch.allclose(once.flatten(), torch.linspace(-1, 1, 256), atol=1e-6) and once.dtype == torch.float32
    assert floats(once) is once and pixels.flatten().tolist() == list(range(256)), "bytes stay as they are"


# Orders.


def test_epochs_are_permutations_each_its_own():
    order = Epochs(11, 5)
    first, second = ([order[e * 11 + i] for i in range(11)] for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(11)) and first != second
    assert [order[i] for i in range(11)] == first, "whatever was asked before"


def plain_mixture(lengths, weights, seed, positions):
    """The definition, walked from the start: each source's draws count up, and epochs follow each other."""
    mixed, count = Mixed(lengths, weights, seed), [0] * len(lengths)
    orders = [Epochs(n, seed, i) for i, n in enumerate(lengths)]
    for p in range(positions):
        index = mixed[p]
        source = max(i for i, offset in enumerate(mixed.offsets) if offset <= index)
        assert index - mixed.offsets[source] == orders[source][count[source]]
        count[source] += 1
    return count


def test_a_mixture_draws_by_weight_and_each_source_in_epochs():
    lengths, weights = [7, 1000, 31], [2, 1, 0.25]
    count = plain_mixture(lengths, weights, 9, BLOCK + 1000)
    mixed = Mixed(lengths, weights, 9)
    assert mixed.counts(BLOCK + 1000) == count
    assert mixed.counts(BLOCK) == quotas(weights)
    expected = np.array(weights) / sum(weights) * (BLOCK + 1000)
    assert np.allclose(count, expected, rtol=0.02)
    fresh = Mixed(lengths, weights, 9)
    assert [fresh[p] for p in (BLOCK + 5, 3, 2 * BLOCK)] == [mixed[p] for p in (BLOCK + 5, 3, 2 * BLOCK)]
    assert [Mixed(lengths, weights, 8)[p] for p in range(50)] != [mixed[p] for p in range(50)]


@pytest.mark.parametrize("weights", [[1], [0.7, 0.3], [1, 1, 1], [1e-9, 1], [5, 1e-7, 2, 1e-7], [1 / 7] * 7])
def test_quotas_sum_to_the_block_and_leave_none_out(weights):
    found = quotas(weights)
    assert sum(found) == BLOCK and min(found) >= 1
    shares = np.array(weights) / sum(weights) * BLOCK
    assert np.abs(found - shares).max() <= len(weights)
