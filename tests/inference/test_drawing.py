"""The task that judges drawings, its reader of scenes, and the verb that draws."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from typer.testing import CliRunner

from diptych.benchmarks.base import NotApplicable
from diptych.benchmarks.drawings.drawing import Drawing, credits_of
from diptych.benchmarks.drawings.scene_reader import (
    HELD_OUT_FROM,
    WIDTH,
    SceneReader,
    centre_loss,
    lessons,
    scene_reader,
    train_reader,
    worn,
)
from diptych.benchmarks.records import Records
from diptych.benchmarks.run import evaluate, recompute
from diptych.benchmarks.tasks import task
from diptych.benchmarks.texts.facts import claim_credits, parse_caption
from diptych.cli import app
from diptych.config.recipe import load_recipe
from diptych.core.capabilities import Adapter
from diptych.core.errors import DiptychError
from diptych.data.fields.base import to_pixels
from diptych.data.scenes.graph import Graph, is_held_out
from diptych.data.scenes.layout import picture
from diptych.data.sources import open_source
from diptych.training.loop import train

SCENES = "scenes:small"


class Copyist(Adapter):
    """Draws by looking the caption up among the scenes it knows: what it draws is true."""

    name, capabilities = "copyist", frozenset({"draw", "reconstruct"})

    def __init__(self, samples, order=None):
        order = range(len(samples)) if order is None else order
        self.known = {s.captions[0]: samples[i].image for s, i in zip(samples, order, strict=True)}

    def draw(self, texts, **how):
        return [self.known[text] for text in texts]

    def reconstruct(self, images):
        return [np.full_like(image, 128) for image in images]


class Oracle:
    """Reads a scene by looking it up."""

    size = 48

    def __init__(self, samples):
        self.graphs = {s.image.tobytes(): s.extra["graph"] for s in samples}
        self.unknown = {"things": [{"concept": "house", "count": 1, "colour": "red"}], "relation": "", "position": ""}

    def read(self, images):
        return [self.graphs.get(image.tobytes(), self.unknown) for image in images]


@pytest.fixture
def judged(monkeypatch):
    """The task with an oracle for a reader: what is tested is the judging."""
    items = Drawing(n=20).items(open_source(SCENES).split("test"))
    samples = [sample for sample, _, _ in items]
    monkeypatch.setattr("diptych.benchmarks.drawings.scene_reader.scene_reader", lambda *given: Oracle(samples))
    return items, samples


def values(records):
    return {r.metric: r.value for r in Drawing(n=20).summarise(records.all())}


def test_true_drawings_are_right_and_other_peoples_are_not(judged, tmp_path):
    items, samples = judged
    records = Records(folder=tmp_path)
    Drawing(n=20).run(Copyist(samples), items, records)
    results = {r.metric: r for r in Drawing(n=20).summarise(records.all())}
    for metric in ("all_true", "objects", "count", "colour", "relation", "colours_counted"):
        assert results[metric].value == 1.0 and results[f"real/{metric}"].value == 1.0, metric
    assert results["all_true"].controls["shuffled"] < 0.3
    real = np.stack([s.image for s in samples]).astype(np.float64)
    assert results["codes/psnr"].value == pytest.approx(10 * np.log10(255**2 / ((real - 128) ** 2).mean()))
    assert results["codes/psnr"].low < results["codes/psnr"].value < results["codes/psnr"].high
    assert results["codes/all_true"].value < 0.3, "grey pictures show nothing"
    assert {s["slice"] for s in results["all_true"].slices} == {"combination=seen", "combination=held-out"}
    pictures = sorted((tmp_path / "drawings").glob("*.png"))
    assert len(pictures) == len(items) + 1 and (tmp_path / "drawings" / "sheet.png").is_file()
    with Image.open(next(p for p in pictures if p.name != "sheet.png")) as first:
        assert first.size == (48, 48)


def test_drawings_of_the_wrong_captions_score_what_the_shuffled_control_does(judged):
    items, samples = judged
    records = Records()
    turned = np.roll(np.arange(len(samples)), 1)
    Drawing(n=20).run(Copyist(samples, turned), items, records)
    found = values(records)
    assert found["all_true"] < 0.3 and found["real/all_true"] == 1.0
    graphs = [samples[i].extra["graph"] for i in turned]
    expected = np.mean([claim_credits(parse_caption(s.captions[0]), g)["objects"] for s, g in zip(samples, graphs, strict=True)])
    assert found["objects"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("caption", "credit"),
    [
        ("two red hearts and a blue fish", 1.0),
        ("a red key, a red fox and a blue star", 1.0),  # whatever they are
        ("two red hearts", 0.0),
        ("two red hearts and two blue fish", 0.0),
        ("two red hearts and a fish", None),  # of which colour is not said
    ],
)
def test_colours_are_counted_whatever_has_them(caption, credit):
    things = [("heart", 1, "red"), ("moon", 1, "red"), ("fish", 1, "blue")]
    graph = {"things": [dict(zip(("concept", "count", "colour"), t, strict=True)) for t in things], "relation": "", "position": ""}
    assert credits_of(parse_caption(caption), graph).get("colours_counted") == credit


def test_captions_of_either_half_are_what_they_say():
    items = Drawing(n=12).items(open_source(SCENES).split("test"))
    assert [name for _, name, _ in items].count("held-out") == 12 and len(items) == 24
    assert len({sample.id for sample, _, _ in items}) == 24
    only = Drawing(n=5).items(open_source(SCENES).split("heldout-combinations"))
    assert {name for _, name, _ in only} == {"held-out"} and len(only) == 5
    with pytest.raises(NotApplicable):
        Drawing().items(open_source(SCENES).split("heldout-concepts"))


def test_numbers_come_from_records_alone_and_a_model_that_cannot_draw_is_passed_over(judged, tmp_path):
    _, samples = judged
    source = open_source(SCENES).split("test")
    summary = evaluate(Copyist(samples), source, [task("drawing?n=20")], tmp_path / "evaluation", key="a")
    again = recompute(tmp_path / "evaluation")
    assert [replace(r, seconds=0.0) for r in again.results] == [replace(r, seconds=0.0) for r in summary.results]
    mute = Adapter()
    assert evaluate(mute, source, [task("drawing?n=20")]).skipped == [
        {"task": "drawing", "reason": "the model cannot draw an image from a text"}
    ]


class Random(Adapter):
    """Draws a scene by the seed; may break down after some captions."""

    name, capabilities = "random", frozenset({"draw"})

    def __init__(self, samples, limit=10**6):
        self.samples, self.limit = samples, limit

    def draw(self, texts, seed, **how):
        self.limit -= len(texts)
        if self.limit < 0:
            raise RuntimeError("no power")
        rng = np.random.default_rng(seed)
        return [self.samples[i].image for i in rng.integers(len(self.samples), size=len(texts))]


def test_a_drawing_task_that_goes_on_draws_what_it_would_have_drawn(judged, tmp_path):
    _, samples = judged
    source, asked = open_source(SCENES).split("test"), task("drawing?n=20&batch=8")
    with pytest.raises(RuntimeError):
        evaluate(Random(samples, limit=20), source, [asked], tmp_path / "a", key="a")
    assert not (tmp_path / "a" / "drawings" / "sheet.png").exists()
    evaluate(Random(samples), source, [asked], tmp_path / "a", key="a")
    evaluate(Random(samples), source, [asked], tmp_path / "b", key="a")
    names = [path.relative_to(tmp_path / "b") for path in sorted((tmp_path / "b").glob("drawings/*.png"))]
    assert len(names) == 41
    for name in ["records/drawing.jsonl", *names]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_drawings_of_another_model_or_of_other_settings_do_not_stay(judged, tmp_path):
    _, samples = judged
    source, sheet = open_source(SCENES).split("test"), tmp_path / "drawings" / "sheet.png"
    evaluate(Random(samples), source, [task("drawing?n=20")], tmp_path, key="a")
    evaluate(Random(samples), source, [task("drawing?n=4")], tmp_path, key="a")
    assert len(list(sheet.parent.glob("*.png"))) == 8 + 1
    evaluate(Adapter(), source, [task("drawing?n=4")], tmp_path, key="b", overwrite=True)
    assert not sheet.parent.exists()


# --- the reader ---


def mapped(reader, centres):
    """The reader, with a map of centres (concept, y, x) in the place of what it sees; features tell the cells apart."""
    side = reader.size // 4

    def see(pixels):
        odds = torch.full((len(pixels), len(reader.names) + 1, side, side), -9.0)
        for concept, y, x in centres:
            odds[:, -1, y, x] = 9.0
            odds[:, -1, y, x + 1] = 5.0  # a bell has one top
            odds[:, concept, y, x + 1] = -3.0  # what it is may be less sure than that it is, and stand beside
        return odds, torch.zeros(len(pixels), WIDTH, side, side)

    reader.forward = see
    return reader


def test_the_reader_reads_what_its_maps_say():
    world = open_source(SCENES).split("train").world
    torch.manual_seed(0)
    reader = SceneReader(world).eval()
    fox, key = 0, 5
    told = {fox: 3, key: 1}
    reader.at = lambda features, rows, y, x, concepts: F.one_hot(concepts, WIDTH).float()

    class Colours(torch.nn.Module):
        def forward(self, seen):
            return 9.0 * F.one_hot(torch.tensor([told[int(c)] for c in seen.argmax(-1)]), len(reader.colours))

    reader.colour = Colours()
    forth, back = torch.zeros(1, 7), torch.zeros(1, 7)
    forth[0, 1] = back[0, 4] = 9.0  # the first above the second, and the other way round
    reader.pair = lambda a, b, way: forth if way[0, 1] > 0 else back
    blank = [np.zeros((48, 48, 3), dtype=np.uint8)]
    (graph,) = mapped(reader, [(fox, 2, 2), (fox, 2, 8), (key, 9, 5)]).read(blank)
    assert graph == {
        "things": [
            {"concept": world.seen[fox], "count": 2, "colour": world.palette[2]},
            {"concept": world.seen[key], "count": 1, "colour": world.palette[0]},
        ],
        "relation": "above",
        "position": "",
    }
    (graph,) = mapped(reader, [(fox, 9, 2), (fox, 9, 8), (key, 2, 5)]).read(blank)
    assert [t["concept"] for t in graph["things"]] == [world.seen[key], world.seen[fox]] and graph["relation"] == "above"
    (graph,) = mapped(reader, [(key, 8, 2)]).read(blank)
    assert graph["position"] == "bottom left" and graph["relation"] == ""
    (graph,) = mapped(reader, []).read(blank)
    assert len(graph["things"]) == 1, "something is always seen"


def test_the_loss_of_centres_is_the_focal_loss_of_its_paper():
    generator = np.random.default_rng(0)
    B, C, h, w = 2, 3, 5, 4
    odds = generator.normal(size=(B, C, h, w))
    rows, concepts = np.array([0, 0, 1]), np.array([1, 1, 2])
    middles = np.array([[0.1, 0.3], [0.8, 0.9], [0.5, 0.5]])  # x, y
    total = 0.0
    for b in range(B):
        for c in range(C):
            for y in range(h):
                for x in range(w):
                    p = 1 / (1 + np.exp(-odds[b, c, y, x]))
                    own = [m for r, k, m in zip(rows, concepts, middles, strict=True) if (r, k) == (b, c)]
                    if any((int(m[1] * h), int(m[0] * w)) == (y, x) for m in own):
                        total -= (1 - p) ** 2 * np.log(p)
                        continue
                    bells = [np.exp(-((y + 0.5 - m[1] * h) ** 2 + (x + 0.5 - m[0] * w) ** 2) / (2 * 0.8**2)) for m in own]
                    total -= (1 - max(bells, default=0.0)) ** 4 * p**2 * np.log(1 - p)
    found = centre_loss(*(torch.tensor(a) for a in (odds, rows, concepts, middles)))
    assert float(found) == pytest.approx(total / 3, rel=1e-5)


def test_the_reader_says_the_same_of_a_pair_either_way():
    torch.manual_seed(0)
    reader = SceneReader(open_source(SCENES).split("train").world).eval()
    a, b, way = torch.randn(4, WIDTH), torch.randn(4, WIDTH), torch.randn(4, 2)
    there, back = reader.pair(a, b, way), reader.pair(b, a, -way)
    torch.testing.assert_close(there, back[:, [3, 4, 5, 0, 1, 2, 6]])


def test_lessons_are_a_quarter_of_what_models_are_not_shown_and_mostly_overlap():
    source = open_source(SCENES)
    graphs = list(islice(lessons(source), 800))
    held = np.mean([is_held_out(g, source.split("train").world) for g in graphs])
    assert 0.2 < held < 0.32
    assert np.mean([g.relation == "front" for g in graphs]) > 0.3
    pixels = to_pixels([picture(g, 48)[0] for g in graphs[:64]])
    changed = (worn(pixels) - pixels).abs().amax((1, 2, 3)) > 0
    assert 0.5 < changed.float().mean() < 0.95, "a quarter stay as they are"


def test_the_reader_never_learns_from_what_is_judged():
    """Scenes of held-out combinations are taken from far behind those that captions come from."""
    items = Drawing(n=200).items(open_source(SCENES).split("heldout-combinations"))
    assert max(int(sample.id.rpartition("/")[2]) for sample, _, _ in items) < HELD_OUT_FROM


def test_the_reader_learns_and_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path))
    source = open_source(SCENES)
    state = torch.get_rng_state()
    heard = []
    reader = scene_reader(source, 32 * 50, heard.append)
    assert torch.equal(torch.get_rng_state(), state) and heard
    monkeypatch.setattr("diptych.benchmarks.drawings.scene_reader.train_reader", None)  # what is kept is not trained again
    again = scene_reader(source.split("test"), 32 * 50)
    samples = [source.split("test")[i] for i in range(100)]
    graphs = again.read([s.image for s in samples])
    assert graphs == reader.read([s.image for s in samples])
    truth = [Graph.from_dict(s.extra["graph"]) for s in samples], [s.extra["boxes"] for s in samples]
    pixels = to_pixels([s.image for s in samples])
    fresh = SceneReader(source.split("train").world).eval()
    with torch.no_grad():
        assert again.loss(pixels, *truth) < 0.5 * fresh.loss(pixels, *truth)


@pytest.mark.slow
def test_the_reader_is_nearly_always_right_about_real_scenes():
    source = open_source(SCENES)
    reader = train_reader(source)
    for split in ("test", "heldout-combinations"):
        samples = source.split(split).retrieval(200)
        graphs = reader.read([s.image for s in samples])
        credits = [claim_credits(parse_caption(s.captions[0]), g) for s, g in zip(samples, graphs, strict=True)]
        for metric, least in (("objects", 0.96), ("count", 0.97), ("colour", 0.97), ("relation", 0.93), ("all_true", 0.9)):
            assert np.mean([c[metric] for c in credits if metric in c]) > least, (split, metric)


# --- the verb ---


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "chameleon"
    overrides = [
        *("parts.quantizer.patch=16", "parts.quantizer.width=16", "parts.quantizer.vocabulary=32", "parts.decoder.width=32"),
        *("parts.decoder.depth=1", "stages.0.batch_size=8", "stages.1.batch_size=8", "budget=48 samples", "precision=fp32"),
    ]
    train(load_recipe("chameleon", overrides), path)
    return path


def test_the_verb_draws_each_text_and_a_sheet(run, tmp_path):
    more = tmp_path / "more.txt"
    more.write_text("a green key\n\n")
    out = tmp_path / "out"
    result = CliRunner().invoke(
        app, ["draw", str(run), "two red hearts", "--file", str(more), "-n", "2", "--out", str(out), "--json"]
    )
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [row["text"] for row in rows] == ["two red hearts"] * 2 + ["a green key"] * 2
    for row in rows:
        with Image.open(row["picture"]) as picture:
            assert picture.size == (48, 48)
    assert (out / "sheet.png").is_file() and json.loads((out / "drawings.json").read_text())["guidance"] == 3.0


def test_a_document_is_continued_and_written(run, tmp_path):
    shown, out = tmp_path / "shown.png", tmp_path / "out"
    Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(shown)
    given = ["compose", str(run), "here is a red fish.", str(shown), "--out", str(out), "--json"]
    for following in ("image", "text"):
        result = CliRunner().invoke(app, [*given, "--following", following, "--max-tokens", "3"])
        assert result.exit_code == 0, result.output
        (row,) = json.loads(result.stdout)
        lines = (out / "document.md").read_text().split("\n\n")
        assert len(lines) == 3 and lines[0] == "here is a red fish." and lines[1] == "![](0001.png)"
        assert list(row) == [{"image": "picture", "text": "text"}[following]]
    with Image.open(out / "0002.png") as drawn, Image.open(out / "0001.png") as kept:
        assert drawn.size == (48, 48) and kept.size == (30, 20)
    for wrong, message in (("none.png", "no such file; give texts"), ("--following=sound", "expected any, text or image")):
        with pytest.raises(DiptychError, match=message):
            CliRunner().invoke(app, [*given, wrong], catch_exceptions=False)


def test_the_verb_says_what_is_missing(run, tmp_path):
    with pytest.raises(DiptychError, match="name the texts to draw"):
        CliRunner().invoke(app, ["draw", str(run)], catch_exceptions=False)
    with pytest.raises(DiptychError, match="no such file"):
        CliRunner().invoke(app, ["draw", str(run), "--file", str(tmp_path / "none.txt")], catch_exceptions=False)


def test_a_trained_run_keeps_its_first_stages_quantizer(run):
    """The second stage leaves the quantizer as the first one made it."""
    from safetensors.torch import load_file

    from diptych.training.checkpoint import checkpoints

    first, *_, last = checkpoints(run / "checkpoints")
    a, b = (load_file(path / "model.safetensors") for path in (first, last))
    same = [n for n in a if n.startswith("parts.quantizer")]
    assert same and all(torch.equal(a[n], b[n]) for n in same)
    assert any(not torch.equal(a[n], b[n]) for n in a if n.startswith("parts.decoder"))
