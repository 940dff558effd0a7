"""Regions in a batch: boxes, masks and points follow crops and flips; options; bad boxes; old packings."""

from __future__ import annotations

import math
import random
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from diptych.config.recipe import load_recipe
from diptych.core.batch import Batch, Regions, Texts
from diptych.core.sample import Region, Sample, captioned
from diptych.data.fields import Context, build_fields
from diptych.data.fields.base import Draw
from diptych.data.fields.regions import RegionsField
from diptych.data.loader import Loader
from diptych.data.packing.pack import pack
from diptych.data.packing.shard import schema
from diptych.data.regions.placement import Placement, central, usable, whole
from diptych.data.regions.runs import from_runs, to_runs
from diptych.data.source import BrokenItem
from diptych.data.sources import open_source
from diptych.data.text import Tokenizer

TOKENIZER = Tokenizer.train(["a red green blue box on the left"], 300, 12)
COLOURS = {"red": 0, "green": 1, "blue": 2}
SIZE = 48


def painted(i: int, width: int = 90, height: int = 70) -> Sample:
    """Three ellipses of pure colours, each a region: what is visible in the model's picture tells where they are."""
    rng = np.random.default_rng(i)
    image = np.zeros((height, width, 3), np.uint8)
    rows, columns = np.mgrid[:height, :width]
    regions = []
    for name, channel in COLOURS.items():
        w, h = rng.integers(18, 26, 2)
        left, top = 2 + 29 * channel, int(rng.integers(2, height - h - 2))
        mask = ((columns + 0.5 - left - w / 2) / (w / 2)) ** 2 + ((rows + 0.5 - top - h / 2) / (h / 2)) ** 2 <= 1
        image[mask, channel] = 255
        box = (float(left), float(top), float(left + w), float(top + h))
        wrong = tuple(f"a {other}" for other in COLOURS if other != name)
        regions.append(Region(box, f"a {name}", mask, wrong, (left + w / 2, top + h / 2)))
    return Sample(str(i), image=image, text=captioned(["a box"]), regions=regions)


class Painted:
    """``painted`` as a source; ``change`` alters its samples."""

    address, problems = "painted", []

    def __init__(self, change: Any = None, n: int = 8):
        self.change, self.n = change, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Sample:
        sample = painted(i)
        return sample if self.change is None else self.change(sample)

    def fingerprint(self) -> str:
        return "painted"

    def split(self, name: str) -> Painted:
        return self


def loader(augment: Any = "none", change: Any = None, names: tuple[str, ...] = ("image", "regions"), **options: Any) -> Loader:
    from diptych.config.recipe import FieldSpec

    own = {"regions": FieldSpec(kind="regions", **options)} if options else {}
    source = Painted(change)
    fields = build_fields(names, Context(TOKENIZER, SIZE, augment, source=source, own=own))
    return Loader(source, fields, 8, 3)


@pytest.mark.parametrize(
    "augment", ["none", {"crop": {"scale": [0.4, 0.9]}}, {"flip": 0.5}, {"preset": "crop", "flip": 0.5}], ids=str
)
def test_boxes_masks_and_points_are_where_the_pixels_went(augment):
    one = loader(augment, masks=True, points=True)
    seen = 0
    for step in range(3):
        batch = one.batch(step)
        pixels, regions = batch["image"].pixels, batch["regions"]
        for row, owner in enumerate(regions.owner.tolist()):
            name = regions.phrases.strings[row].split()[1]
            coloured = pixels[owner, COLOURS[name]] > 127
            assert (coloured ^ regions.masks[row]).sum() <= max(6, 0.12 * int(coloured.sum())), "but for the edge"
            down, across = (torch.nonzero(coloured.any(axis)).flatten() for axis in (1, 0))
            found = (int(across.min()), int(down.min()), int(across.max()) + 1, int(down.max()) + 1)
            np.testing.assert_allclose(regions.boxes[row].numpy() * SIZE, found, atol=1.6)
            x, y = regions.points[row].numpy() * SIZE
            if 1 < x < SIZE - 1 and 1 < y < SIZE - 1:
                assert coloured[int(y), int(x)]
            seen += 1
    assert seen > 40


def test_random_crops_and_flips_move_boxes_and_are_the_same_for_the_same_step():
    moving, still = loader({"preset": "crop", "flip": 0.5}), loader()
    assert torch.equal(moving.batch(1)["regions"].boxes, loader({"preset": "crop", "flip": 0.5}).batch(1)["regions"].boxes)
    assert not torch.allclose(moving.batch(0)["regions"].boxes[:4], still.batch(0)["regions"].boxes[:4])


def test_a_sample_with_a_phrase_about_left_or_right_is_not_flipped():
    def left(sample: Sample) -> Sample:
        first, *others = sample.fields["regions"]
        return sample.with_(regions=[first._replace(phrase="the box on the left"), *others])

    plain = loader("none", left).batch(0)
    kept, flipped = loader({"flip": 1.0}, left).batch(0), loader({"flip": 1.0}).batch(0)
    assert torch.equal(kept["image"].pixels, plain["image"].pixels) and torch.equal(kept["regions"].boxes, plain["regions"].boxes)
    assert torch.equal(flipped["image"].pixels, plain["image"].pixels.flip(-1))
    mirrored = plain["regions"].boxes[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor([1, 0, 1, 0])
    assert torch.allclose(flipped["regions"].boxes, mirrored, atol=1e-6)
    without = loader({"flip": 1.0}, left, names=("image",)).batch(0)
    assert torch.equal(without["image"].pixels, flipped["image"].pixels), "phrases that are not read forbid nothing"


BAD = {
    "right of its end": (30.0, 5.0, 20.0, 20.0),
    "outside": (200.0, 5.0, 220.0, 20.0),
    "not a number": (math.nan, 5.0, 20.0, 20.0),
    "no area": (10.0, 5.0, 10.0, 20.0),
    "three numbers": (1.0, 2.0, 3.0),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_one_bad_box_costs_that_box_alone_and_is_recorded(bad):
    def spoilt(sample: Sample) -> Sample:
        regions = sample.fields["regions"]
        return sample.with_(regions=[regions[0], Region(bad, "a bad one"), *regions[1:]]) if sample.id == "2" else sample

    one, good = loader("none", spoilt), loader()
    found, wanted = one.batch(0), good.batch(0)
    assert found.ids == wanted.ids and torch.equal(found["regions"].boxes, wanted["regions"].boxes)
    assert list(one.problems) == ["2, region 2"] and not good.problems
    assert any(word in one.problems["2, region 2"].reason for word in ("empty box", "outside", "expected four"))


def test_a_sample_of_bad_boxes_alone_is_a_broken_item():
    field = RegionsField("regions", TOKENIZER, SIZE)
    sample = painted(0).with_(regions=[Region((5.0, 5.0, 5.0, 5.0), "none")])
    with pytest.raises(BrokenItem, match="no regions that can be used"):
        field.fit(sample, partial(random.Random, 0))
    mask = np.zeros((3, 3), bool)
    with pytest.raises(BrokenItem, match="no regions that can be used"):
        RegionsField("regions", TOKENIZER, SIZE, masks=True).fit(
            sample.with_(regions=[Region((5.0, 5.0, 9.0, 9.0), "a", mask)]), partial(random.Random, 0)
        )


def test_negatives_say_which_region_they_are_of_and_are_limited():
    plain, two, one = loader().batch(0)["regions"], loader(negatives=5).batch(0)["regions"], loader(negatives=1).batch(0)["regions"]
    assert plain.negatives is None and plain.masks is None and plain.points is None
    n = len(two)
    assert two.negatives.owner.tolist() == [row for row in range(n) for _ in range(2)] and one.negatives.owner.tolist() == list(
        range(n)
    )
    for row, wrong in zip(two.negatives.owner.tolist(), two.negatives.strings, strict=True):
        assert wrong != two.phrases.strings[row] and wrong.startswith("a ")
    assert set(one.negatives.strings) < {"a red", "a green", "a blue"} | {""}


def test_regions_are_limited_by_a_draw_that_changes_from_epoch_to_epoch():
    one = loader(most=1)
    epochs = [one.batch(step) for step in (0, 1, 2)]
    chosen = [dict(zip(b.ids, b["regions"].phrases.strings, strict=True)) for b in epochs]
    assert all(b["regions"].owner.tolist() == list(range(8)) for b in epochs)
    assert chosen[0] != chosen[1] != chosen[2]


def test_regions_without_masks_have_their_boxes_as_masks():
    def bare(sample: Sample) -> Sample:
        return sample.with_(regions=[r._replace(mask=None, point=None) for r in sample.fields["regions"]])

    regions = loader("none", bare, masks=True, points=True).batch(0)["regions"]
    for box, mask, point in zip(regions.boxes.numpy() * SIZE, regions.masks.numpy(), regions.points.numpy() * SIZE, strict=True):
        down, across = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        np.testing.assert_allclose((across.min(), down.min(), across.max() + 1, down.max() + 1), box, atol=0.51)
        np.testing.assert_allclose(point, ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), atol=1e-3)


def test_joined_and_picked_regions_keep_their_negatives():
    pieces = [loader(negatives=2, masks=True).rows(0, *ends) for ends in ((0, 3), (3, 8))]
    whole_ = loader(negatives=2, masks=True).batch(0)["regions"]
    joined = Batch.cat(pieces)["regions"]
    assert torch.equal(joined.negatives.owner, whole_.negatives.owner) and joined.negatives.strings == whole_.negatives.strings
    assert torch.equal(joined.masks, whole_.masks) and torch.equal(joined.owner, whole_.owner)
    assert torch.equal(joined.phrases.owner, whole_.phrases.owner)
    rows = torch.tensor([4, 1, 4])
    picked = whole_[rows]
    assert torch.equal(picked.boxes, whole_.boxes[rows]) and picked.negatives.owner.tolist() == [0, 0, 1, 1, 2, 2]
    of = {
        row: [s for s, o in zip(whole_.negatives.strings, whole_.negatives.owner.tolist(), strict=True) if o == row]
        for row in (1, 4)
    }
    assert list(picked.negatives.strings) == of[4] + of[1] + of[4]
    some = Regions(
        torch.rand(2, 4), Texts(torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.bool)), torch.tensor([0, 1])
    )
    mixed = Regions.cat([some, whole_], [0, 2])
    assert torch.equal(mixed.negatives.owner, whole_.negatives.owner + 2)


def test_placements_are_exact():
    place = Placement(10, 20, 40, 20, flip=True)
    assert place.box((10, 20, 30, 30)) == (0.5, 0.0, 1.0, 0.5)
    np.testing.assert_allclose(place.back((0.5, 0.0, 1.0, 0.5)), (10, 20, 30, 30))
    assert place.point((20, 25)) == (0.75, 0.25) and place.point((5, 25)) is None
    assert central(24, 40) == (8, 0, 24, 24, False) and whole(24, 40).box((10, 6, 20, 12)) == (0.25, 0.25, 0.5, 0.5)
    assert whole(24, 40).box((0, 0, 100, 12), least=0.5) is None, "four tenths of it are inside"
    mask = np.zeros((24, 40), bool)
    mask[3, 5] = True
    small = whole(24, 40).mask(mask, 8)
    assert small.sum() == 1 and small[1, 1], "a mask that covers half of no pixel keeps one"
    assert whole(24, 40).flipped().mask(mask, 8)[1, 6]
    assert usable([-5, 1, 10, 50], 24, 40) == (0, 1, 10, 24) and usable((1, 2, 300, 4)) == (1, 2, 300, 4)


def test_masks_as_runs():
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (3, 5), (7, 2)):
        for share in (0.0, 0.3, 1.0):
            mask = rng.random(shape) < share
            assert np.array_equal(from_runs(to_runs(mask)), mask)
    assert to_runs(np.array([[True, True, False], [False, False, True]])) == [2, 3, 0, 2, 3, 1]
    with pytest.raises(ValueError, match="runs of 3 pixels for a mask of 2 × 2"):
        from_runs([2, 2, 1, 2])


def test_masks_negatives_and_points_are_packed_and_scaled(tmp_path, monkeypatch):
    import diptych.data.sources as sources

    monkeypatch.setattr(sources, "open_source", lambda address: Painted(n=3))
    pack("painted", tmp_path / "out", size=35)
    monkeypatch.undo()
    packed = open_source(f"packed:{tmp_path}/out")
    for i in range(3):
        stored, own = packed[i], painted(i)
        assert stored.image.shape[:2] == (35, 45)
        for found, region in zip(stored.fields["regions"], own.fields["regions"], strict=True):
            assert found.box == tuple(edge / 2 for edge in region.box) and found.negatives == region.negatives
            assert found.point == tuple(edge / 2 for edge in region.point) and found.phrase == region.phrase
            quarter = region.mask.reshape(35, 2, 45, 2).mean((1, 3))
            assert np.array_equal(found.mask, quarter >= 0.5)


def test_a_packing_of_version_2_is_read_as_before(tmp_path):
    """Written as the version before did: without the columns that were added."""
    pack("scenes:small", tmp_path / "new", limit=5)
    import json
    import shutil

    from diptych.data.packing.shard import file_hash, shard_name

    shutil.copytree(tmp_path / "new", tmp_path / "old")
    path = tmp_path / "old" / shard_name(0)
    table = pa.ipc.open_file(str(tmp_path / "new" / shard_name(0))).read_all()
    manifest = json.loads((tmp_path / "old" / "manifest.json").read_text())
    old = schema([n for n in manifest["fields"]], 2)
    assert {"boxes", "phrases"} <= set(old.names) and not any(name.startswith("region_") for name in old.names)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, old) as writer:
        writer.write_table(table.select(old.names))
    manifest["parameters"]["version"] = 2
    manifest["shards"][0] |= {"bytes": path.stat().st_size, "blake2b": file_hash(path)}
    (tmp_path / "old" / "manifest.json").write_text(json.dumps(manifest))
    before, after = open_source(f"packed:{tmp_path}/old"), open_source(f"packed:{tmp_path}/new")
    assert [before[i].fields["regions"] for i in range(5)] == [after[i].fields["regions"] for i in range(5)]
    assert all(r.mask is None and r.negatives == () for r in before[0].fields["regions"])


def test_options_come_from_the_recipe_and_unknown_ones_are_refused():
    from diptych.core.errors import DiptychError
    from diptych.data.fields import kinds_of_fields

    recipe = load_recipe("clip", {"data.fields": {"regions": {"kind": "regions", "masks": True, "negatives": 10, "most": 8}}})
    kinds = kinds_of_fields(recipe)
    assert kinds["regions"] == "regions" and kinds["regions.phrases"] == kinds["regions.negatives"] == "text"
    with pytest.raises(DiptychError, match=r"data\.fields\.regions.*mask"):
        kinds_of_fields(load_recipe("clip", {"data.fields": {"regions": {"kind": "regions", "mask": True}}}))


def test_a_field_without_negatives_in_this_batch_counts_as_missing():
    from diptych.models.vlm import build_model

    given = load_recipe("clip", {"data.image_size": SIZE})
    batch = loader(negatives=2).batch(0)
    model = build_model(given, TOKENIZER, SIZE)
    p = model.encode(batch)
    assert p.has("regions.negatives.embedding") and len(p["regions.negatives.embedding"]) == len(batch["regions"].negatives)
    bare = loader().batch(0)
    assert not model.encode(bare).has("regions.negatives.embedding") and model.encode(bare).has("regions.phrases.embedding")


def test_draws_are_fixed_by_seed_and_position():
    field = RegionsField("regions", TOKENIZER, SIZE, most=2, negatives=1)
    sample = painted(1)
    fitted = field.fit(sample, partial(random.Random, 0))
    drawn = [field.collate([Draw(0, position, sample, {"regions": fitted})]).phrases.strings for position in (*range(9), 0)]
    assert drawn[0] == drawn[9] and len({*drawn}) > 1


def test_sheets_draw_the_edges_of_masks_in_colours(tmp_path):
    from diptych.data.sheet import contact_sheet, outlined

    sample = painted(0)
    regions = sample.fields["regions"]
    shown = outlined(sample.image, regions)
    changed = (shown != sample.image).any(-1)
    for row, column in np.argwhere(np.ones(changed.shape, bool)).tolist():
        edge = False
        for region in regions:
            near = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
            inside = [0 <= r < 70 and 0 <= c < 90 and region.mask[r, c] for r, c in near]
            edge |= bool(region.mask[row, column]) and not all(inside)
        assert changed[row, column] == edge, "what is inside keeps its colour"
    bare = [r._replace(mask=None) for r in regions]
    assert outlined(sample.image, bare) is sample.image
    files = [contact_sheet([s], tmp_path / f"{i}.png").read_bytes() for i, s in enumerate((sample, sample.with_(regions=bare)))]
    assert files[0] != files[1]


class Together:
    """Two processes as threads: what each gives, both get."""

    def __init__(self, rank: int, held: dict[str, Any], barrier: Any):
        self.rank, self.size, self.held, self.barrier, self.calls = rank, 2, held, barrier, 0

    def collect(self, value: Any) -> list[Any]:
        self.calls += 1
        self.held[self.calls, self.rank] = value
        self.barrier.wait()
        return [self.held[self.calls, rank] for rank in (0, 1)]

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat(self.collect(x))

    def total(self, *values: float) -> list[float]:
        return [sum(column) for column in zip(*self.collect(values), strict=True)]


@pytest.mark.parametrize("none", [None, 1])
def test_negatives_of_all_processes_belong_to_the_regions_of_all(none):
    """Where one process has none, nobody waits for it, and the field has none."""
    import threading

    from diptych.training.gather import _field

    pieces = [loader(negatives=2).rows(0, *ends) for ends in ((0, 4), (4, 8))]
    for piece in pieces:  # of one length, as the gathering pads them
        piece.fields["regions"].negatives.strings = piece.fields["regions"].phrases.strings = ()
    whole_ = Batch.cat(pieces)["regions"]
    if none is not None:
        pieces[none].fields["regions"].negatives = None
    held, barrier, found = {}, threading.Barrier(2, timeout=20), {}

    def work(rank: int) -> None:
        found[rank] = _field(Together(rank, held, barrier), pieces[rank]["regions"], 4)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for rank in (0, 1):
        field = found[rank]
        assert torch.equal(field.boxes, whole_.boxes) and torch.equal(field.owner, whole_.owner)
        if none is not None:
            assert field.negatives is None
        else:
            assert torch.equal(field.negatives.owner, whole_.negatives.owner)
            assert torch.equal(field.negatives.ids, whole_.negatives.ids)
