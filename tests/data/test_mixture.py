"""Mixtures: addresses, indices, parts, and the order in which training draws."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from diptych.core.errors import DiptychError
from diptych.core.sample import Conversation, Sample, Turn, captioned
from diptych.data.loader import loader_for
from diptych.data.order import BLOCK
from diptych.data.source import BrokenItem, Problem
from diptych.data.sources import open_source
from diptych.data.sources.mixture import Mixture
from diptych.data.text import Tokenizer
from diptych.training.start.setup import corpus_of
from sources_fixture import make_csv, own_cache, put  # noqa: F401 - fixtures

pytestmark = pytest.mark.usefixtures("own_cache")
TOKENIZER = Tokenizer.train(["a b c"], 400, 12)


class Plain:
    def __init__(self, name, n=10, broken=()):
        self.address, self.n, self.broken, self.problems = f"plain:{name}", n, broken, [Problem("x", "no caption")]

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if i in self.broken:
            raise BrokenItem(str(i), "made so")
        return Sample(str(i), image=np.full((16, 16, 3), i, np.uint8), text=captioned([f"{self.address} {i}"]))

    def fingerprint(self):
        return self.address

    def split(self, name):
        return Plain(f"{self.address}/{name}", {"train": self.n - 1, "test": self.n // 5, "validation": 0}[name])


def test_an_address_with_weights_options_and_plus_signs(tmp_path):
    first = make_csv(f"{tmp_path}/c++")
    mixture = open_source(f"mix:2*{first}+.5*scenes:small?length=30+1*scenes:full?size=48&length=7")
    assert mixture.weights == [2, 0.5, 1] and mixture.lengths == [3, 30, 7] and len(mixture) == 40
    assert mixture.addresses == [first, "scenes:small?length=30", "scenes:full?size=48&length=7"]
    assert mixture[0].id == "1/a.png" and mixture[3].captions == open_source("scenes:small")[0].captions == mixture.captions(3)
    assert mixture[-1].id.startswith("3/") and mixture.captions(0) == mixture[0].captions
    again = open_source(mixture.address)
    assert again.weights == mixture.weights and again.fingerprint() == mixture.fingerprint()
    with pytest.raises(IndexError):
        mixture[40]


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("mix:", "WEIGHT\\*ADDRESS"),
        ("mix:coco:a.json+0.3*packed:b", "expected mix:"),
        ("mix:0*scenes:small+1*scenes:full", "weight of 'scenes:small' is 0"),
        ("mix:1*mix:1*scenes:small", "mixture within a mixture"),
        ("mix:0.000001*scenes:small+1*scenes:full", "below 1 in 100,800"),
        ("mix:1*folder:nowhere", "no such directory"),
    ],
)
def test_addresses_that_cannot_be_mixed(address, said):
    with pytest.raises(DiptychError, match=said):
        open_source(address)


class Talks(Plain):
    def __getitem__(self, i):
        turns = [Turn("user", "what?"), Turn("assistant", f"{self.address} {i}")]
        return super().__getitem__(i).with_(text=None, turns=Conversation(turns))


def test_all_that_is_said_counts_for_a_vocabulary_and_every_source_has_its_share():
    mixture = Mixture([Plain("a", 200), Talks("b", 200)], [1, 3])
    assert mixture.captions(0) == ["plain:a 0"] and mixture.captions(201) == ["what?", "plain:b 1"]
    some = Counter(text.split()[0] for text in corpus_of(mixture, 100))
    assert some.total() == some["plain:a"] + 2 * some["plain:b"] and 10 < some["plain:a"] < 40
    assert corpus_of(mixture, 100) == corpus_of(mixture, 100) and len(set(corpus_of(mixture, 400))) == 401


def test_parts_are_parts_of_every_source_and_empty_ones_drop_out():
    mixture = Mixture([Plain("a"), Plain("b", 4)], [1, 3])
    assert mixture.split("train").lengths == [9, 3] and mixture.split("train").weights == [1, 3]
    test = mixture.split("test")
    assert test.lengths == [2] and test.weights == [1]
    with pytest.raises(DiptychError, match="no source has items in the validation part"):
        mixture.split("validation")
    assert [p.item for p in mixture.problems] == ["1/x", "2/x"]


def test_training_draws_by_weight_and_counts_what_it_drew():
    mixture = Mixture([Plain("a"), Plain("b", 25)], [1, 3])
    loader = loader_for(mixture, TOKENIZER, 16, 100, seed=4)
    seen = Counter(i for step in range(20) for i in loader.batch(step).ids)
    by_source = Counter()
    for name, count in seen.items():
        by_source[name[0]] += count
    drawn = loader.drawn(2000)
    assert drawn == {"plain:a": by_source["1"], "plain:b": by_source["2"]} and sum(drawn.values()) == 2000
    assert abs(drawn["plain:a"] - 500) < 60
    for source, n in (("1", 10), ("2", 25)):
        counts = [seen[f"{source}/{i}"] for i in range(n)]
        assert max(counts) - min(counts) <= 1, "epochs of its own: all items equally often"
    assert loader.drawn(BLOCK) == {"plain:a": BLOCK // 4, "plain:b": 3 * BLOCK // 4}


def test_any_slicing_of_a_mixture_gives_the_same_order():
    def ids(pieces):
        loader = loader_for(Mixture([Plain("a"), Plain("b", 25)], [1, 3]), TOKENIZER, 16, 12, seed=1)
        return [i for step in (0, 7) for a, b in pieces for i in loader.rows(step, a, b).ids]

    assert ids([(0, 12)]) == ids([(0, 6), (6, 12)]) == ids([(k, k + 1) for k in range(12)])


def test_a_broken_item_is_replaced_from_its_own_source():
    mixture = Mixture([Plain("a", 10, broken=range(5, 10)), Plain("b", 10)], [1, 1])
    loader = loader_for(mixture, TOKENIZER, 16, 50)
    found = Counter(i[0] for step in range(4) for i in loader.batch(step).ids)
    assert found == {"1": loader.drawn(200)["plain:a"], "2": loader.drawn(200)["plain:b"]}
    assert set(loader.problems) == {f"1/{i}" for i in range(5, 10)}


def test_an_endless_source_mixes_with_a_short_one(tmp_path):
    put(f"{tmp_path}/x.txt", "")
    mixture = open_source(f"mix:1*{make_csv(f'{tmp_path}/in')}+1*scenes:small").split("train")
    batch = loader_for(mixture, TOKENIZER, 32, 20).batch(3)
    assert {i[0] for i in batch.ids} == {"1", "2"} and batch["image"].pixels.shape == (20, 3, 32, 32)


# --- batches of one source ---


def test_each_batch_is_of_one_source_and_every_source_in_epochs():
    """Against a plain walk: batch by batch, each source's own epochs in order."""
    from diptych.data.order import Epochs, quotas

    mixture = Mixture([Plain("a", 10), Plain("b", 7), Plain("c", 25)], [3, 1, 2])
    order = mixture.order(5, run=4)
    which = np.repeat(np.arange(3, dtype=np.int32), quotas([3, 1, 2]))
    np.random.default_rng((5, 0, BLOCK)).shuffle(which)
    epochs, taken = [Epochs(n, 5, k) for k, n in enumerate((10, 7, 25))], [0, 0, 0]
    for batch in range(200):
        source = int(which[batch])
        for k in range(4):
            assert order[4 * batch + k] == sum((10, 7, 25)[:source]) + epochs[source][taken[source]]
            taken[source] += 1
            assert order.counts(4 * batch + k + 1) == taken
    one_epoch = [i for p in range(800) if (i := order[p]) < 10][:20]
    assert sorted(one_epoch[:10]) == sorted(one_epoch[10:]) == list(range(10))
    assert order.counts(4 * BLOCK) == [2 * BLOCK, 4 * BLOCK // 6, 4 * BLOCK // 3], "shares of the batches"
    assert order[4 * BLOCK + 1] == order[4 * BLOCK + 1] and mixture.order(5, run=1)[77] == mixture.order(5)[77]


def test_a_loader_draws_batches_of_one_source_whatever_the_pieces():
    from diptych.data.fields import Context, build_fields
    from diptych.data.loader import Loader

    mixture = Mixture([Plain("a", 40), Plain("b", 40)], [1, 1])
    fields = build_fields(("image", "text"), Context(TOKENIZER, 16))
    loader = Loader(mixture, fields, 6, 3, debiased=True)
    batches = [loader.batch(k) for k in range(40)]
    sources = [{i.partition("/")[0] for i in b.ids} for b in batches]
    assert all(len(s) == 1 for s in sources) and set.union(*sources) == {"1", "2"}
    assert 10 < sum(s == {"1"} for s in sources) < 30
    assert loader.rows(3, 2, 4).ids + loader.rows(3, 4, 6).ids == batches[3].ids[2:]
    again = Loader(mixture, fields, 6, 3, debiased=True)
    assert [next(again.stream(7)).ids] == [batches[7].ids], "resumed at a step"
    again.move_to(2, 17)  # a run that had batches of another size: the next whole batch
    assert again.start_of(2) == 18 and again.batch(2).ids == batches[3].ids
    plain = Loader(mixture, fields, 6, 3)
    assert any(len({i.partition("/")[0] for i in plain.batch(k).ids}) == 2 for k in range(10))


def test_batches_of_one_source_need_a_mixture():
    from diptych.config.recipe import load_recipe
    from diptych.training.start.setup import set_up

    with pytest.raises(DiptychError, match=r"data\.debiased: .*set data\.train to mix:"):
        set_up(load_recipe("clip", ["size=tiny", "data.train=scenes:small?length=60", "data.debiased=true"]))


# --- weights by size ---


def sized(*lengths):
    return [f"scenes:small?length={n}&seed={k}" for k, n in enumerate(lengths)]


@pytest.mark.parametrize(
    ("rule", "temperature", "cap"), [("T=1;", 1, 0), ("T=2;", 2, 0), ("T=2;cap=400;", 2, 400), ("T=inf;", np.inf, 0)]
)
def test_weights_grow_with_a_root_of_the_size(rule, temperature, cap):
    lengths, own = (100, 900, 3600), (1, 1, 0.5)
    addresses = sized(*lengths)
    mixture = open_source(f"mix:{rule}" + "+".join(f"{w}*{a}" for w, a in zip(own, addresses, strict=True)))
    expected = [w * min(n, cap or n) ** (1 / temperature) for w, n in zip(own, lengths, strict=True)]
    assert mixture.weights == pytest.approx(expected, rel=1e-5)
    drawn = loader_for(mixture, TOKENIZER, 32, 12).drawn(BLOCK)
    assert [drawn[a] for a in mixture.addresses] == pytest.approx([BLOCK * w / sum(expected) for w in expected], abs=2)
    shares = mixture.shares()
    assert sum(s["share"] for s in shares) == pytest.approx(1)
    assert [s["epochs"] for s in shares] == pytest.approx(
        [s["share"] * sum(lengths) / n for s, n in zip(shares, lengths, strict=True)]
    )


def test_a_source_has_a_limit_of_its_own_and_an_endless_one_needs_one():
    short, long = sized(100, 900)
    assert open_source(f"mix:T=1;cap=200;1*{short}+1<300*{long}").weights == [100, 300]
    assert open_source(f"mix:T=2;1*{short}+1<2500*scenes:full").weights == [10, 50]
    assert open_source(f"mix:T=inf;1*{short}+3*scenes:full").weights == [1, 3]
    with pytest.raises(DiptychError, match="draws samples without end: add cap=20000"):
        open_source(f"mix:T=2;1*{short}+1*scenes:full")


def test_weights_by_size_are_the_same_to_the_draw_when_written_out_or_resumed():
    mixture = open_source("mix:T=3;" + "+".join(f"1*{a}" for a in sized(70, 333, 1234)))
    again = open_source(mixture.address)
    assert again.weights == mixture.weights and again.fingerprint() == mixture.fingerprint()
    order, other = mixture.order(5), again.order(5)
    places = [*range(100), *range(BLOCK - 50, BLOCK + 50)]
    assert [order[p] for p in places] == [other[p] for p in reversed(places)][::-1]
    assert mixture.split("test").weights == mixture.weights


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("mix:T=0.5;1*scenes:small?length=9", "T must be at least 1"),
        ("mix:T=x;1*scenes:small?length=9", "T must be a number"),
        ("mix:T=2;cap=0;1*scenes:small?length=9", "cap at least 1"),
        ("mix:T=nan;1*scenes:small?length=9", "T must be at least 1"),
        ("mix:cap=9;1*scenes:small?length=9", "begin with T=2;"),
        ("mix:1<5*scenes:small?length=9", "begin with T=1;"),
        ("mix:T=1;1<0*scenes:small?length=9", "from 1 on"),
    ],
)
def test_sizes_that_cannot_be_weighed(address, said):
    with pytest.raises(DiptychError, match=said):
        open_source(address)
