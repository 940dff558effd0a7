"""Every kind of field: shapes and owners in a batch, packing and back, the two controls, slices of a batch, what is missing, and
worker processes."""

from __future__ import annotations

import multiprocessing
import pickle
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from conversations_fixture import CHATML, chat
from diptych.config.recipe import load_recipe
from diptych.core.batch import Batch, Collated, Turns, lengthened
from diptych.core.errors import DiptychError
from diptych.core.sample import IMAGE, Captions, Conversation, Document, Label, Region, Sample, Turn, Video, captioned
from diptych.data.conversations.template import IMAGE_ID
from diptych.data.fields import FIELDS, Context, Draw, build_fields, field_class, kinds_of_fields
from diptych.data.loader import Loader
from diptych.data.source import BrokenItem
from diptych.data.sources import open_source
from diptych.data.text import Tokenizer
from diptych.objectives import Objective
from diptych.training.start.setup import check_fields, set_up

SIZE, N, PLACES = 16, 7, 3  # PLACES: tokens of an image in a conversation
CLASSES = ["cat", "guinea_pig", "dog"]
TOKENIZER = Tokenizer.train([f"number {i} of many" for i in range(N)], 300, 12)
STORED = [name for name in FIELDS if name != "views"]  # views are made of the image


def picture(*seed: int, height: int = 24, width: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def everything(i: int) -> dict[str, Any]:
    """A value for each field, of unlike sizes from sample to sample; the first ones have no images or no texts in places."""
    boxes = [(8.0 + k, 2.0, 20.0 + k, 14.0) for k in range(i % 3 + 1)]
    shown = [picture(i, 1, k) for k in range(i % 3)]
    asked = f"{IMAGE} " * len(shown) + "what is it?" + " really?" * i
    parts: list[Any] = [f"before {i}", picture(i, 2), f"behind {i} " * i, picture(i, 3, height=30)]
    return {
        "image": picture(i, height=24 + i),
        "text": captioned([f"number {i}", f"nr {i}."], [f"m{i // 2}"] * 2) if i % 2 else captioned(["word", "word"]),
        "negatives": [f"number {i} of none", f"nr {i} of none"] if i % 2 else [],
        "label": Label(i % 3, CLASSES[i % 3]),
        "regions": [Region(box, f"part {k} of {i}") for k, box in enumerate(boxes)],
        "turns": Conversation([Turn("user", asked), Turn("assistant", f"it is {i}")], shown),
        "video": Video([picture(i, 4, k) for k in range(2 * i + 1)], [k / 4 for k in range(2 * i + 1)]),
        "document": Document([parts[:1], parts[1:2], parts][min(i, 2)]),
    }


class Kit:
    """A few samples that have everything. lacking: fields that a sample, or each (None), does not have."""

    address, problems, classes = "a kit", [], CLASSES

    def __init__(self, lacking: dict[str, int | None] | None = None, n: int = N):
        self.lacking, self.n = lacking or {}, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Sample:
        kept = {name: value for name, value in everything(i).items() if self.lacking.get(name, i + 1) not in (i, None)}
        return Sample(str(i), **kept)

    def fingerprint(self) -> str:
        return "kit"

    def split(self, name: str) -> Kit:
        return self


def made(*names: str, source: Any = None, **options: Any) -> dict[str, Any]:
    talk = chat(CHATML, tokens=PLACES, room=200)
    options = {"views": {"flip": 0.5, "views": 2}, **options}
    context = Context(TOKENIZER, SIZE, chat=talk, source=source or Kit(), **options)
    return build_fields(names, context)


def loader(*names: str, source: Any = None, batch_size: int = N, seed: int = 5, workers: int = 0, **options: Any) -> Loader:
    return Loader(source or Kit(), made(*names, source=source, **options), batch_size, seed, workers)


def collated(name: str, *samples: Sample) -> Any:
    field = made(name)[name]
    return field.collate([Draw(0, k, s, {name: field.fit(s, partial(random.Random, k))}) for k, s in enumerate(samples)])


def of(*numbers: int) -> list[Sample]:
    return [Kit()[i] for i in numbers]


# In a batch.


def test_images_are_one_a_sample_at_the_models_size() -> None:
    images = collated("image", *of(0, 3, 5))
    assert images.pixels.shape == (3, 3, SIZE, SIZE) and images.pixels.dtype == torch.uint8 and images.owner is None
    assert len(images) == 3 and images.count(9) == 27


def test_views_of_a_sample_stand_one_after_the_other() -> None:
    views = collated("views", *of(0, 3, 5))
    assert views.pixels.shape == (6, 3, SIZE, SIZE) and views.owner.tolist() == [0, 0, 1, 1, 2, 2]


def test_texts_are_one_of_each_samples_captions_and_equal_meanings_are_equal_numbers() -> None:
    texts = collated("text", *of(2, 3, 1, 6))
    assert texts.ids.shape == texts.mask.shape and texts.ids.dtype == torch.int64 and texts.owner is None
    assert [said in s.captions for said, s in zip(texts.strings, of(2, 3, 1, 6), strict=True)] == [True] * 4
    assert [TOKENIZER.decode(row) for row in texts.ids] == [s.lower().rstrip(".") for s in texts.strings]
    meaning = texts.meaning.tolist()
    assert meaning[0] == meaning[3] and len(set(meaning)) == 3, "two that say 'word'; m1 and m0"
    assert texts.count(0) == int(texts.mask.sum())


def test_negatives_say_whose_they_are_and_captions_without_one_have_no_row() -> None:
    wrong = collated("negatives", *of(0, 1, 2, 3))
    assert wrong.owner.tolist() == [1, 3] and [text.endswith("of none") for text in wrong.strings] == [True, True]
    assert [str(i) in text for i, text in zip((1, 3), wrong.strings, strict=True)] == [True, True]
    assert collated("negatives", *of(0, 2)) is None


def test_a_sample_with_fewer_negatives_or_meanings_than_captions_is_read() -> None:
    samples = [Sample(str(i), text=captioned(["red fish", "blue fish"], ["m"]), negatives=["red dog"]) for i in range(12)]
    wrong, texts = collated("negatives", *samples), collated("text", *samples)
    by_caption = {caption: wrong.strings[row] for row, caption in enumerate(texts.strings)}
    assert by_caption == {"red fish": "red dog", "blue fish": "fish blue"}, "where none is given, two words are swapped"
    assert len(set(texts.meaning.tolist())) == 2


def test_a_text_field_of_another_name_reads_its_own_texts() -> None:
    class Titled(Kit):
        def __getitem__(self, i: int) -> Sample:
            return (
                super().__getitem__(i).with_(title=[None, "bare", captioned([])][i] if i < 3 else captioned([f"t {i}", f"u {i}"]))
            )

    context = Context(TOKENIZER, SIZE, source=Titled(), own={"title": "diptych.data.fields:TextField"})
    one = Loader(Titled(), build_fields(["text", "title"], context), 64, 5)
    batch = one.batch(0)
    places = [("tu".index(title[0]), i) for title, i in zip(batch["title"].strings, batch.ids, strict=True)]
    assert all(title[2:] == i for title, i in zip(batch["title"].strings, batch.ids, strict=True)) and {k for k, _ in places} == {
        0,
        1,
    }
    captions = [Titled()[int(i)].captions.index(text) for text, i in zip(batch["text"].strings, batch.ids, strict=True)]
    assert captions != [k for k, _ in places], "drawn independently"
    assert {i: p.reason for i, p in one.problems.items()} == {
        "0": "no title",
        "1": "title is a str; expected diptych.core.sample.captioned([…])",
        "2": "no title",
    }


def test_labels_come_with_the_texts_of_all_classes() -> None:
    labels = collated("label", *of(1, 2, 6))
    assert labels.index.tolist() == [1, 2, 0] and labels.classes.strings == ("cat", "guinea pig", "dog") and labels.owner is None
    assert len(labels) == 3 and len(labels.classes) == 3
    with pytest.raises(BrokenItem, match=r"class 3 \('emu'\) of 3"):
        collated("label", of(0)[0].with_(label=Label(3, "emu")))


def test_regions_are_shares_of_the_central_square_each_with_its_phrase() -> None:
    regions = collated("regions", *of(0, 2, 1))
    assert regions.boxes.shape == (6, 4) and regions.owner.tolist() == [0, 1, 1, 1, 2, 2] == regions.phrases.owner.tolist()
    assert regions.phrases.strings[1:4] == ("part 0 of 2", "part 1 of 2", "part 2 of 2")
    # Sample 0 is 24 high and 40 wide: 8 columns are cut off on the left.
    np.testing.assert_allclose(regions.boxes[0], [0, 2 / 24, 12 / 24, 14 / 24], atol=1e-6)
    outside = of(0)[0].with_(regions=[Region((0.0, 0.0, 7.0, 9.0), "cut off"), Region((0.0, 0.0, 12.0, 9.0), "mostly")])
    with pytest.raises(BrokenItem, match="no regions within the square"):
        collated("regions", outside.with_(regions=outside.fields["regions"][:1]))
    assert collated("regions", outside).phrases.strings == ("mostly",)


def test_conversations_have_a_row_each_and_their_images_stand_in_order() -> None:
    samples = of(2, 0, 1)
    turns = collated("turns", *samples)
    assert turns.ids.shape == turns.mask.shape == turns.learned.shape == turns.positions.shape and len(turns) == 3
    assert (turns.ids == IMAGE_ID).sum(1).tolist() == [2 * PLACES, 0, PLACES]
    assert turns.images.pixels.shape == (3, 3, SIZE, SIZE)
    assert turns.images.pixels[2].equal(collated("turns", samples[2]).images.pixels[0])
    assert turns.learned.any(1).all() and not (turns.learned & ~turns.mask).any()
    assert turns.count(PLACES) == int(turns.mask.sum()) + 3 * PLACES
    assert collated("turns", *of(0)).images is None
    captions = collated("turns", *(s.with_(turns=None) for s in samples))  # described instead
    assert (captions.ids == IMAGE_ID).sum(1).tolist() == [PLACES] * 3 and len(captions.images) == 3


def test_packed_rows_hold_the_same_conversations_with_the_same_images() -> None:
    def talks(turns: Turns) -> dict[tuple[int, ...], list[bytes]]:
        """Tokens of each conversation, with the images that stand in it."""
        images, result = iter([] if turns.images is None else turns.images.pixels), {}
        for ids, mask, positions in zip(turns.ids, turns.mask, turns.positions, strict=True):
            starts = [k for k in range(len(ids)) if positions[k] == 0 and mask[k]]
            for a, b in pairwise([*starts, int(mask.sum())]):
                said = tuple(ids[a:b].tolist())
                result[said] = [next(images).numpy().tobytes() for _ in range(said.count(IMAGE_ID) // PLACES)]
        assert next(images, None) is None
        return result

    for step in (0, 3):
        plain, packed = (loader("turns", pack=pack).batch(step)["turns"] for pack in (False, True))
        assert talks(plain) == talks(packed) and len(talks(plain)) == N == len(plain) > len(packed)
        assert int(plain.learned.sum()) == int(packed.learned.sum()) and plain.count(PLACES) == packed.count(PLACES)


def test_frames_of_clips_say_whose_they_are_and_when_they_are_shown() -> None:
    clips = collated("video", *of(1, 6, 0))
    assert clips.frames.pixels.shape == (3 + 8 + 1, 3, SIZE, SIZE)
    assert clips.owner.tolist() == [0] * 3 + [1] * 8 + [2] == clips.frames.owner.tolist()
    assert clips.seconds[:3].tolist() == [0, 0.25, 0.5]
    chosen = [0, 2, 4, 5, 7, 8, 10, 12]  # of 13 frames the middle of each eighth: 13 / 16, 39 / 16, …
    assert clips.seconds[3:11].tolist() == [k / 4 for k in chosen]


def test_a_recipe_sets_how_many_frames_of_a_clip_a_model_sees(tmp_path: Path) -> None:
    clips = open_source("scenes:clips")

    def shown(*overrides: str) -> int:
        own = load_recipe("clip", list(overrides)).data.fields
        kinds_of_fields(load_recipe("clip", list(overrides)))  # what a model asks when it is built
        field = build_fields(["video"], Context(image_size=32, own=own))["video"]
        return len(field.collate([Draw(0, i, clips[i], {"video": field.fit(clips[i], random.Random)}) for i in range(2)]).frames)

    assert shown() == 2 * 8
    assert shown("data.fields={video: {kind: video, frames: 3}}") == 2 * 3
    saved = load_recipe("clip", ["data.fields={video: {kind: video, frames: 3}}"])
    (tmp_path / "saved.yaml").write_text(saved.to_yaml(), encoding="utf-8")
    assert load_recipe(str(tmp_path / "saved.yaml")) == saved
    for wrong, message in (
        ("frame: 3", r"data\.fields\.video: unknown option 'frame'; did you mean 'frames'"),
        ("frames: 0", r"data\.fields\.video\.frames: "),
    ):
        with pytest.raises(DiptychError, match=message):
            kinds_of_fields(load_recipe("clip", [f"data.fields={{video: {{kind: video, {wrong}}}}}"]))


def test_documents_keep_the_order_of_their_texts_and_images() -> None:
    samples = of(2, 0, 1)
    documents = collated("document", *samples)
    assert documents.kind.tolist() == [0, 1, 0, 1, 0, 1] and documents.owner.tolist() == [0, 0, 0, 0, 1, 2]
    assert documents.texts.owner.tolist() == [0, 0, 1] and documents.images.owner.tolist() == [0, 0, 2]
    assert documents.texts.strings == ("before 2", "behind 2 behind 2 ", "before 0")
    assert documents.images.pixels.shape == (3, 3, SIZE, SIZE)
    assert collated("document", *of(0)).images is None and collated("document", *of(1)).texts is None


# Packing.


def same(a: Any, b: Any) -> bool:
    """Equal values, arrays and all."""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and np.array_equal(a, b)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def as_bytes(image: np.ndarray) -> bytes:
    return image.tobytes()


def from_bytes(data: bytes, height: int, width: int) -> np.ndarray:
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)


def packed(name: str, values: list[Any], scale: Any) -> list[Any]:
    """Through a table in Arrow's format and back."""
    cls = field_class(name)
    rows = [cls.pack(value, scale, as_bytes) for value in values]
    table = pa.Table.from_pylist(rows, schema=pa.schema(cls.schema()))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return [cls.unpack(row, from_bytes) for row in pa.ipc.open_file(sink.getvalue()).read_all().to_pylist()]


@pytest.mark.parametrize("name", STORED)
def test_what_is_packed_comes_back(name: str) -> None:
    values = [everything(i)[name] for i in range(N)]
    assert same(packed(name, values, lambda image: image), values)


@pytest.mark.parametrize("name", ["image", "turns", "video", "document"])
def test_pictures_come_back_at_the_packed_size(name: str) -> None:
    values = [everything(i)[name] for i in range(N)]
    back = packed(name, values, lambda image: image[::2, ::2])
    for before, after in zip(values, back, strict=True):
        assert same([image[::2, ::2] for image in pictures(before)], list(pictures(after)))


def test_texts_that_utf8_cannot_hold_are_packed_all_the_same() -> None:
    (text,) = packed("text", [Captions(["half a \ud83d smile"])], None)
    assert text.texts == ["half a ? smile"]


# Controls.


def pictures(value: Any) -> Iterator[np.ndarray]:
    """All pictures in a value, in order."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from pictures(inner)


def shape(value: Any) -> Any:
    """A value without what it says: how many of what, and of which size."""
    if isinstance(value, Captions):  # that texts of one meaning belong together says something, too
        return len(value.texts)
    if isinstance(value, Label):
        return "a class"
    if isinstance(value, np.ndarray):
        return value.shape
    if isinstance(value, list | tuple):
        return [shape(inner) for inner in value]
    return "a text" if isinstance(value, str) else value


@pytest.mark.parametrize("name", STORED)
def test_blank_values_keep_their_shapes_and_their_pictures_are_grey(name: str) -> None:
    for i in range(N):
        value = everything(i)[name]
        blank = field_class(name).blank(value)
        assert type(blank) is type(value) and shape(blank) == shape(value)
        assert all((image == 128).all() for image in pictures(blank))


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize("n", [2, 3, 7])
def test_shuffling_gives_nobody_its_own_value(name: str, n: int) -> None:
    values = [everything(i)[name] for i in range(n)]
    for seed in range(20):
        dealt = field_class(name).shuffle(values, random.Random(seed))
        assert sorted(map(id, dealt)) == sorted(map(id, values))
        assert not any(a is b for a, b in zip(dealt, values, strict=True))
    assert field_class(name).shuffle(values[:1], random.Random(0)) == values[:1]


# Slices.


def assert_same(a: Any, b: Any, at: str = "") -> None:
    """Equal fields or batches; where conversations are padded, whatever their rows hold there."""
    assert type(a) is type(b), at
    if isinstance(a, dict):
        assert set(a) == set(b), at
        for name in a:
            assert_same(a[name], b[name], f"{at}.{name}")
    elif isinstance(a, Collated | Batch):
        for f in fields(a):  # type: ignore[arg-type]
            x, y = getattr(a, f.name), getattr(b, f.name)
            if isinstance(a, Turns) and f.name in Turns.padded and f.name != "mask":
                x, y = x[a.mask], y[b.mask]
            assert_same(x, y, f"{at}.{f.name}")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), at
    else:
        assert a == b, at


@pytest.mark.parametrize("name", FIELDS)
def test_slices_of_a_batch_put_together_are_the_batch(name: str) -> None:
    one = loader(name)
    for step in (0, 3):
        whole = one.rows(step, 0, N)
        assert whole.size == N and len(whole.ids) == N
        for cuts in ([0, 3, N], [0, 1, 2, N], list(range(N + 1))):
            pieces = [one.rows(step, a, b) for a, b in pairwise(cuts)]
            assert_same(Batch.cat(pieces), whole)
        inside = Batch.cat([one.rows(step, 1, 4), one.rows(step, 4, 6)])
        assert inside.start == 1
        assert_same(inside, one.rows(step, 1, 6))


def test_texts_are_padded_to_a_length_that_is_asked_for() -> None:
    batch = loader("text", "regions", "document").batch(0)
    longer = Batch.cat([batch], 30)
    for texts, before in (
        (longer["text"], batch["text"]),
        (longer["regions"].phrases, batch["regions"].phrases),
        (longer["document"].texts, batch["document"].texts),
    ):
        assert texts.ids.shape[1] == 30 and torch.equal(texts.ids, lengthened(before.ids, 30))


@pytest.mark.parametrize("name", FIELDS)
def test_rows_can_be_picked_with_repeats(name: str) -> None:
    field = loader(name).batch(0)[name]
    rows = torch.tensor([2, 0, 2])
    others = {name for name in field.beside if getattr(field, name) is not None}
    if others - set(field.of_rows):  # the images of a conversation are not found by its row
        with pytest.raises(ValueError, match=f"{type(field).__name__} with .*images: these have rows of their own"):
            field[rows]
        field = replace(field, **dict.fromkeys(field.beside))
    picked = field[rows]
    assert len(picked) == 3
    for inner in field.row_wise:
        value, found = getattr(field, inner), getattr(picked, inner)
        if isinstance(value, torch.Tensor):
            assert torch.equal(found, value[rows])
    assert field.owner is None or torch.equal(picked.owner, field.owner[rows])


# The order: a function of seed, step and place.

RANDOM = {"augment": "simclr", "views": {"preset": "simclr", "views": 2}, "text_mask": 0.3}


@pytest.mark.parametrize("name", FIELDS)
def test_what_was_read_before_changes_nothing_and_another_seed_does(name: str) -> None:
    one, other = loader(name, **RANDOM), loader(name, seed=6, **RANDOM)
    wanted = [loader(name, **RANDOM).batch(step) for step in (0, 4)]
    for step in (4, 0, 2, 0, 4):
        found = one.batch(step)
        if step in (0, 4):
            assert_same(found, wanted[step // 4])
    assert other.batch(0).ids != wanted[0].ids and wanted[0].ids != wanted[1].ids
    if name in ("image", "views", "video"):  # the same samples in another epoch are cropped anew
        assert not any(map(torch.equal, pictures_of(wanted[0], name), pictures_of(wanted[1], name)))


def pictures_of(batch: Batch, name: str) -> list[torch.Tensor]:
    """The pictures of each sample, in the order of ids."""
    field, order = batch[name], sorted(range(N), key=lambda row: batch.ids[row])
    values = (field.frames if name == "video" else field).pixels
    owner = field.owner if field.owner is not None else torch.arange(N)
    return [values[owner == row] for row in order]


@pytest.mark.parametrize(("names", "options"), [(list(FIELDS), {}), (list(FIELDS), RANDOM)], ids=["plain", "random"])
@pytest.mark.parametrize("workers", [0, 2])
def test_streams_of_every_field_are_the_batches_from_any_step_on(names: list[str], options: dict[str, Any], workers: int) -> None:
    plain = loader(*names, **options)
    for first in (0, 2):  # from the start, and as a resumed run
        stream = loader(*names, workers=workers, **options).stream(first, 0, N, 3, ahead=not workers)
        for step in range(first, first + 2):
            assert_same(Batch.cat([next(stream) for _ in range(3)]), plain.batch(step))
        stream.close()


# What is missing.


@pytest.mark.parametrize("name", FIELDS)
def test_a_sample_that_lacks_the_field_is_recorded_and_its_successor_taken(name: str) -> None:
    made_of = {"views": ["image"], "negatives": ["text"], "turns": ["turns", "text"], "document": ["document", "image"]}
    lacking = made_of.get(name, [name])
    whole, some = loader(name), loader(name, source=Kit(dict.fromkeys(lacking, 2)))
    batch = some.batch(0)
    assert batch.ids == tuple("3" if i == "2" else i for i in whole.batch(0).ids)
    assert list(some.problems) == ["2"] and some.problems["2"].reason.startswith("no ")


def test_a_missing_negative_is_no_problem() -> None:
    some = loader("text", "negatives", source=Kit({"negatives": None}))
    batch = some.batch(0)
    assert not some.problems and set(batch.ids) == set(map(str, range(N)))


class Reads(Objective):
    """An objective that reads one field."""

    def __init__(self, model: Any, *, field: str):
        super().__init__(model)
        self.needs = (field,)

    def forward(self, p: Any) -> torch.Tensor:
        raise NotImplementedError


def recipe(*stages: list[str]) -> Any:
    """A stage for each list of fields that are read."""
    small = {"depth": 1, "width": 32, "heads": 2}
    parts = {"parts.vision": {"kind": "vit", "patch": 8, **small}, "parts.text": {"kind": "transformer", **small}}
    told = [
        {"name": f"s{i}", "objectives": {f"reads_{n}": {"kind": f"{__name__}:Reads", "field": n} for n in names} | {"info_nce": 1}}
        for i, names in enumerate(stages)
    ]
    return load_recipe("clip", {**parts, "stages": told, "data.image_size": SIZE, "data.tokenizer.vocab_size": 300})


@pytest.mark.parametrize("name", ["image", "label", "regions", "video"])
def test_a_source_that_never_has_the_field_is_refused_before_training_with_the_remedy(name: str) -> None:
    with pytest.raises(
        DiptychError, match=rf"stages\.s\d: .*field '{name}', which a kit does not have .*take another --data, or other"
    ):
        set_up(recipe(["text"], [name]), source=Kit({name: None}), device=torch.device("cpu"))
    set_up(recipe(["text"], [name]), source=Kit({name: 0}), device=torch.device("cpu"))  # the first sample alone lacks it


def test_documents_may_be_captioned_images_but_not_images_alone() -> None:
    given = recipe(["text"])
    check_fields(Kit({"document": None}), ["document"], given, "stages.s0")
    with pytest.raises(DiptychError, match="read the field 'document', which a kit does not have .*take another --data, or other"):
        check_fields(Kit({"document": None, "text": None}), ["document"], given, "stages.s0")


def test_a_source_without_captions_is_refused_before_training() -> None:
    with pytest.raises(DiptychError, match="a kit: no captions to learn from"):
        set_up(recipe(["text"]), source=Kit({"text": None, "turns": None}), device=torch.device("cpu"))


def test_classes_that_a_source_does_not_list_are_told_with_the_remedy() -> None:
    source = Kit()
    source.classes = []
    with pytest.raises(DiptychError, match="a kit has no list of classes.*read class folders or a table by classes:PATH"):
        loader("label", source=source)


# Worker processes.


def rows_elsewhere(one: Loader, step: int) -> bytes:
    return pickle.dumps(one.rows(step, 1, 6))


def test_loaders_and_batches_go_to_spawned_processes_and_back() -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        one = loader(*FIELDS)
        found = pickle.loads(pool.submit(rows_elsewhere, one, 2).result())
        assert_same(found, one.rows(2, 1, 6))
        assert list(found.fields) == list(FIELDS)


def test_negatives_without_swaps_are_those_of_the_source_alone() -> None:
    """A clip that looks the same backwards has no backward caption, and none is made up."""
    from diptych.config.recipe import load_recipe
    from diptych.data.fields import Context, build_fields
    from diptych.data.sources import open_source
    from diptych.data.text import Tokenizer

    recipe = load_recipe("test-of-time")
    source = open_source(recipe.data.train)
    samples = [source[i] for i in range(60)]
    tokenizer = Tokenizer.train([c for s in samples for c in s.captions], 400, 32)
    context = Context(image_size=32, tokenizer=tokenizer, own=recipe.data.fields)
    field = build_fields(["negatives"], context)["negatives"]
    rows = [Draw(0, i, sample, {}) for i, sample in enumerate(samples)]
    owners = field.collate(rows).owner.tolist()
    expected = [i for i, row in enumerate(rows) if samples[i].negatives[row.caption]]
    assert owners == expected and 0 < len(owners) < len(rows)
    always = build_fields(["negatives"], Context(image_size=32, tokenizer=tokenizer))["negatives"]
    assert len(always.collate([Draw(0, i, sample, {}) for i, sample in enumerate(samples)]).owner) > len(owners)
