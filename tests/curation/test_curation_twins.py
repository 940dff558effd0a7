"""Duplicates: the index against all pairs, who stays, where pointers lead; SemDeDup against brute force."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.core.arrays import unit_rows
from diptych.curation.engine.apply import reduce, rows_of
from diptych.curation.operators.duplicates.operators import NearImage, SameImage, SameMeaning, SameText, near_twins
from diptych.curation.operators.duplicates.pruning import KEPT, groups, prune
from diptych.curation.operators.duplicates.semantic import _assign, _pairs, clusters, semantic_twins
from diptych.data.hashes.hamming import nearest_within, pairs_within, plan


def near_hashes(rng: np.random.Generator, n: int, most: int) -> np.ndarray:
    """Random hashes, some of them others with up to ``most`` bits turned."""
    hashes = rng.integers(0, 2**64, n, dtype=np.uint64)
    for i in range(n // 2, n):
        for bit in rng.choice(64, rng.integers(0, most + 1), replace=False):
            hashes[i] = hashes[rng.integers(0, n // 2)] if bit == 0 else hashes[i] ^ np.uint64(1 << int(bit))
        if rng.random() < 0.7:
            flips = rng.choice(64, rng.integers(0, most + 1), replace=False)
            hashes[i] = hashes[rng.integers(0, n // 2)] ^ np.uint64(sum(1 << int(b) for b in flips))
    return hashes


def all_pairs(hashes: np.ndarray, distance: int) -> dict[tuple[int, int], int]:
    bits = np.bitwise_count(hashes[:, None] ^ hashes[None])
    return {(i, j): int(bits[i, j]) for i, j in zip(*np.nonzero(np.triu(bits <= distance, 1)), strict=True)}


@pytest.mark.parametrize("distance", [0, 1, 2, 4, 6, 8, 12])
def test_pairs_are_those_of_comparing_all(distance: int) -> None:
    hashes = np.unique(near_hashes(np.random.default_rng(distance), 400, distance + 2))
    hashes = np.random.default_rng(1).permutation(hashes)
    i, j, bits = pairs_within(hashes, distance)
    found = dict(zip(zip(i.tolist(), j.tolist(), strict=True), bits.tolist(), strict=True))
    assert found == all_pairs(hashes, distance)
    assert len(found) == len(i) and (distance == 0 or len(i) > 20)


def test_copies_are_paired_with_the_first() -> None:
    hashes = np.array([7, 9, 7, 7, 6], np.uint64)
    i, j, bits = pairs_within(hashes, 1)
    assert sorted(zip(i.tolist(), j.tolist(), bits.tolist(), strict=True)) == [(0, 2, 0), (0, 3, 0), (0, 4, 1)]


def test_a_plan_finds_every_pair_by_its_blocks() -> None:
    for distance in range(17):
        blocks, same = plan(1_000_000, distance)
        assert blocks - distance == same >= 1


@pytest.mark.parametrize("distance", [0, 3, 5])
def test_nearest_reference(distance: int) -> None:
    rng = np.random.default_rng(distance)
    reference = rng.integers(0, 2**64, 200, dtype=np.uint64)
    hashes = np.concatenate([reference[:80] ^ np.uint64(1 << 40), reference[80:90], rng.integers(0, 2**64, 50, dtype=np.uint64)])
    place, bits = nearest_within(hashes, reference, distance)
    every = np.bitwise_count(hashes[:, None] ^ reference[None]).astype(int)
    expected = np.where(every.min(1) <= distance, every.argmin(1), -1)
    assert (place == expected).all()
    assert (bits[place >= 0] == every.min(1)[place >= 0]).all()


def plain_prune(order: list[int], near: dict[tuple[int, int], float], mode: str) -> list[int]:
    cause = [-1] * len(order)
    for at, b in enumerate(order):
        before = [a for a in order[:at] if (min(a, b), max(a, b)) in near and (mode == "published" or cause[a] == -1)]
        if before:
            cause[b] = max(before, key=lambda a: (near[min(a, b), max(a, b)], -order.index(a)))
    return cause


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 12), st.randoms(use_true_random=False), st.sampled_from(["kept", "published"]))
def test_pruning_is_the_rule_read_aloud(n: int, random, mode: str) -> None:
    near = {(i, j): random.choice([0.9, 0.95, 0.99]) for i in range(n) for j in range(i + 1, n) if random.random() < 0.3}
    order = random.sample(range(n), n)
    i, j = (np.array([pair[k] for pair in near], np.int64) for k in (0, 1))
    cause = prune(np.array(order), i, j, np.array(list(near.values())), mode)
    assert cause.tolist() == plain_prune(order, near, mode)


def test_a_chain_shrinks_to_its_ends_or_to_its_head() -> None:
    order, i, j, closeness = np.arange(3), np.array([0, 1]), np.array([1, 2]), np.array([1.0, 1.0])
    assert prune(order, i, j, closeness, "kept").tolist() == [KEPT, 0, KEPT]
    assert prune(order, i, j, closeness, "published").tolist() == [KEPT, 0, 1]
    assert groups(np.array([KEPT, 0, 1])).tolist() == [0, 0, 0]


def planted(rng: np.random.Generator, groups: int, copies: int, noise: float, width: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Vectors in well separated groups of near-duplicates, and each one's group."""
    bases = unit_rows(rng.normal(size=(groups, width)), np.float32)
    owner = rng.permutation(np.repeat(np.arange(groups), copies))
    return unit_rows(bases[owner] + noise * unit_rows(rng.normal(size=(len(owner), width)), np.float32)), owner


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000), st.integers(2, 30), st.integers(1, 5), st.integers(1, 12),
    st.sampled_from(["hard", "easy", "first", "random", "best"]), st.sampled_from(["kept", "published"]),
)  # fmt: skip
def test_one_of_every_planted_group_stays(seed: int, count: int, copies: int, k: int, keep: str, mode: str) -> None:
    rng = np.random.default_rng(seed)
    vectors, owner = planted(rng, count, copies, noise=0.1)
    inside = min((vectors[owner == g] @ vectors[owner == g].T).min() for g in range(count))
    outside = (vectors @ vectors.T - 2 * (owner[:, None] == owner[None])).max()
    if inside - outside < 0.01:
        return  # the draw has no gap between the groups, so the claim does not hold for it
    cause, similarity = semantic_twins(
        vectors, 1 - (inside + outside) / 2, k=k, keep=keep, mode=mode, priority=rng.random(len(vectors)), seed=seed
    )
    for g in range(count):
        members = np.flatnonzero(owner == g)
        assert (cause[members] == KEPT).sum() == 1, "never two of a group, never none"
    gone = np.flatnonzero(cause != KEPT)
    assert (owner[cause[gone]] == owner[gone]).all()
    assert np.allclose(similarity[gone], np.einsum("ne,ne->n", vectors[gone], vectors[cause[gone]]))
    if mode == "kept":
        assert (cause[cause[gone]] == KEPT).all(), "every pointer leads to one that stays"


@pytest.mark.parametrize("k", [1, 5, 17])
def test_semantic_twins_across_clusters_are_those_of_comparing_all(k: int) -> None:
    rng = np.random.default_rng(k)
    vectors = unit_rows(rng.normal(size=(300, 4)), np.float32)
    cause, _ = semantic_twins(vectors, 0.03, k=k, keep="first")
    similarity = vectors @ vectors.T
    i, j = np.nonzero(np.triu(similarity > 0.97, 1))
    assert cause.tolist() == prune(np.arange(300), i, j, similarity[i, j]).tolist()
    assert (cause != KEPT).sum() > 20


@pytest.mark.parametrize("k", [2, 3, 9])
def test_twins_on_both_sides_of_a_border_are_found(k: int) -> None:
    """Points close together on a circle: many twins lie about as far from the border between their clusters, on either side. With a
    reach a tenth shorter some of them would be missed.
    """
    angles = np.arange(700) * 2 * np.pi / 700
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    for steps in (5, 12, 24):
        epsilon = 1 - float(np.cos((steps + 0.4) * 2 * np.pi / 700))  # twins are at most so many points apart
        found = np.zeros((700, 700), bool)
        centres = clusters(vectors, k)
        home, guests, _ = _assign(vectors, centres, (2 * epsilon) ** 0.5 / 2)
        i, j, _ = _pairs(vectors, home, guests, len(centres), 1 - epsilon)
        found[i, j] = found[j, i] = True
        assert found.sum(1).tolist() == [2 * steps] * 700
    short = _assign(vectors, centres, 0.9 * (2 * epsilon) ** 0.5 / 2)[1]
    assert len(_pairs(vectors, home, short, len(centres), 1 - epsilon)[0]) < len(i)


def test_the_reach_of_semantic_twins_is_that_of_comparing_all() -> None:
    angles = np.arange(700) * 2 * np.pi / 700
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    similarity = vectors @ vectors.T
    for steps in (5, 12, 24):
        epsilon = 1 - float(np.cos((steps + 0.4) * 2 * np.pi / 700))
        i, j = np.nonzero(np.triu(similarity > 1 - epsilon, 1))
        for seed in range(4):
            order = np.random.default_rng(seed).permutation(700)
            cause, _ = semantic_twins(vectors, epsilon, k=9, keep="random", seed=seed)
            exact = prune(order, i, j, similarity[i, j])
            assert ((cause == KEPT) == (exact == KEPT)).all()  # of equally close twins either may be the cause


def test_the_published_clusters_miss_twins_at_their_borders() -> None:
    rng = np.random.default_rng(0)
    vectors = unit_rows(rng.normal(size=(400, 3)), np.float32)
    exact, _ = semantic_twins(vectors, 0.02, k=40, keep="first")
    inside, _ = semantic_twins(vectors, 0.02, k=40, keep="first", across=False)
    assert (inside != KEPT).sum() < (exact != KEPT).sum()


def shards(columns: dict, size: int) -> list[pa.RecordBatch]:
    batch = rows_of(columns)
    return [batch.slice(start, size) for start in range(0, batch.num_rows, size)]


def outputs(operator, columns: dict, size: int = 3) -> dict[str, list]:
    return pa.Table.from_batches(reduce(operator, shards(columns, size))).to_pydict()


def test_exact_copies_point_to_the_preferred_twin() -> None:
    columns = {"pixel_hash": pa.array([b"a" * 16, b"b" * 16, b"a" * 16, b"a" * 16], pa.binary(16)), "score": [1.0, 5.0, 3.0, 2.0]}
    assert outputs(SameImage(), columns)["same_image_as"] == [None, None, 0, 0]
    assert outputs(SameImage(prefer="score"), columns)["same_image_as"] == [2, None, None, 2]
    assert outputs(SameImage(prefer="-score"), columns)["same_image_as"] == [None, None, 0, 0]


def test_texts_are_equal_but_for_case_and_space_and_may_need_equal_addresses() -> None:
    columns = {"text": ["A fox", "a  fox.", "two foxes", "a fox"], "extra.url": ["u", "v", "u", "u"]}
    assert outputs(SameText(), columns)["same_text_as"] == [None, 0, None, 0]
    assert outputs(SameText(url="extra.url"), columns)["same_text_as"] == [None, None, None, 0]


def test_near_images_by_shards_of_any_size() -> None:
    rng = np.random.default_rng(3)
    hashes = near_hashes(rng, 60, 4)
    columns = {"phash": pa.array(hashes, pa.uint64())}
    whole = outputs(NearImage(distance=4), columns, size=60)
    assert whole == outputs(NearImage(distance=4), columns, size=7)
    gone = [i for i, twin in enumerate(whole["near_image_of"]) if twin is not None]
    assert len(gone) > 10
    for i in gone:
        twin = whole["near_image_of"][i]
        assert whole["near_image_of"][twin] is None
        assert whole["near_image_bits"][i] == bin(int(hashes[i]) ^ int(hashes[twin])).count("1") <= 4


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 6))
def test_what_stays_has_no_near_image_among_what_stays(seed: int, distance: int) -> None:
    hashes = near_hashes(np.random.default_rng(seed), 40, 5)
    cause = near_twins(hashes, np.random.default_rng(seed + 1).permutation(40), distance)
    kept = np.flatnonzero(cause == KEPT)
    assert not all_pairs(hashes[kept], distance)
    gone = np.flatnonzero(cause != KEPT)
    assert (np.bitwise_count(hashes[gone] ^ hashes[cause[gone]]) <= distance).all()
    assert (cause[cause[gone]] == KEPT).all()


def test_same_meaning_reads_a_column_of_vectors() -> None:
    vectors = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.01], [-1.0, 0.0]]
    found = outputs(SameMeaning(epsilon=0.01, keep="first"), {"image_embedding": pa.array(vectors, pa.list_(pa.float32()))}, 2)
    assert found["same_meaning_as"] == [None, None, 0, None]
    assert found["same_meaning_similarity"][2] == pytest.approx(1, abs=1e-3)
    best = SameMeaning(epsilon=0.01, keep="best", prefer="score")
    columns = {"image_embedding": pa.array(vectors, pa.list_(pa.float32())), "score": [1.0, 1.0, 2.0, 1.0]}
    assert outputs(best, columns)["same_meaning_as"] == [2, None, None, None]


@pytest.mark.parametrize(
    ("keep", "cause"), [("hard", [3, 3, 3, KEPT]), ("easy", [2, 2, KEPT, 2]), ("first", [KEPT, 0, 0, 0]), ("best", [1, KEPT, 1, 1])]
)
def test_which_of_several_twins_stays(keep: str, cause: list[int]) -> None:
    """Four twins at 0°, 1°, 3° and 10°, one cluster with its centre near 3.5°: hard is the farthest from it, easy the nearest."""
    angles = np.radians([0.0, 1.0, 3.0, 10.0])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    found, _ = semantic_twins(vectors, 0.02, k=1, keep=keep, priority=np.array([1.0, 4.0, 2.0, 3.0]))
    assert found.tolist() == cause
