"""Tasks about parts of pictures: one box a query, average precision, pointing, segmentation, crops, conventions, leaks."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diptych.benchmarks.base import NotApplicable
from diptych.benchmarks.records import Records
from diptych.benchmarks.regions.answers import Answer, numbers_of, read
from diptych.benchmarks.regions.boxes import iou, ious
from diptych.benchmarks.regions.cards import BoxConvention, cards, reveal, revealed_by
from diptych.benchmarks.regions.detection import OpenVocabulary
from diptych.benchmarks.regions.items import Query
from diptych.benchmarks.regions.pointing import Pointing
from diptych.benchmarks.regions.precision import average_precision, matched
from diptych.benchmarks.regions.refer import Phrase, Refer
from diptych.benchmarks.regions.segmentation import Segmentation, counts, labelled, mean_iou
from diptych.benchmarks.run import evaluate
from diptych.benchmarks.tasks import task
from diptych.core.capabilities import FunctionModel, Located
from diptych.core.errors import DiptychError
from diptych.core.sample import Region, Sample
from diptych.data.regions.conventions import Convention, convention, every
from diptych.data.sources import open_source


class Pictures:
    """Samples as a source."""

    address, problems, fields = "pictures", [], ("image", "regions")

    def __init__(self, samples: list[Sample]):
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> Sample:
        return self.samples[i]

    def fingerprint(self) -> str:
        return "pictures"

    def split(self, name: str) -> Pictures:
        return self


def noise(seed: int, height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


SCENES = "scenes:regions?length=40"


def truth_of(address: str = SCENES, n: int = 40) -> dict[tuple[bytes, str], Region]:
    source = open_source(address)
    return {(s.image.tobytes(), r.phrase): r for s in map(source.__getitem__, range(n)) for r in s.fields["regions"]}


def oracle(known: dict[Any, Region], change: Any = None) -> FunctionModel:
    """Knows where everything is; of other pictures and phrases it says the middle pixel."""

    def locate(images, texts):
        found = []
        for image, text in zip(images, texts, strict=True):
            region = known.get((image.tobytes(), text))
            if region is None:
                found.append(Located((20.0, 20.0, 21.0, 21.0), -1.0))
                continue
            heat = region.mask.astype(np.float32) if region.mask is not None else None
            found.append(Located(region.box, 1.0, heat, region.mask, "box") if change is None else change(region))
        return found

    return FunctionModel("oracle", locate=locate)


def value(summary, task_, metric):
    return next(r for r in summary.results if (r.task, r.metric) == (task_, metric))


# --- overlap ---


def test_overlap_of_boxes_against_counted_pixels():
    rng = np.random.default_rng(0)
    a, b = (np.sort(rng.integers(0, 20, (30, 2, 2)), axis=1).reshape(30, 4).astype(float) for _ in range(2))
    table = ious(a, b)
    for i in range(30):
        for j in range(30):
            pixels = [np.zeros((20, 20), bool) for _ in range(2)]
            for p, box in zip(pixels, (a[i], b[j]), strict=True):
                p[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] = True
            union = (pixels[0] | pixels[1]).sum()
            wanted = (pixels[0] & pixels[1]).sum() / union if union else 0.0
            assert iou(a[i], b[j]) == pytest.approx(wanted) and table[i, j] == pytest.approx(wanted)
    assert iou((5, 5, 1, 1), (0, 0, 9, 9)) == 0.0


# --- referring ---


def test_an_oracle_is_right_and_controls_are_not():
    summary = evaluate(oracle(truth_of()), open_source(SCENES), ["refer?n=80"])
    result = value(summary, "refer", "accuracy")
    assert result.value == 1.0 and result.n == 80 and result.clusters < 40 and result.low > 0.8
    assert set(result.controls) == {"centre", "whole", "largest", "random", "blind", "shuffled"}
    assert result.controls["whole"] < 0.1 and result.controls["blind"] == 0 and result.controls["shuffled"] < 0.35
    assert 0.1 < result.chance < 0.4, "one of three to six boxes"
    kinds = {row["slice"] for row in result.slices}
    assert {"size=small", "kind=relation", "kind=colour"} & kinds
    assert value(summary, "refer", "iou").value == pytest.approx(1.0)


def test_records_alone_give_the_results_and_a_half_overlap_is_enough(tmp_path):
    def half(share):
        return lambda r: Located((r.box[0], r.box[1], r.box[0] + share * (r.box[2] - r.box[0]), r.box[3]), 0.0)

    for share, wanted in ((0.51, 1.0), (0.49, 0.0)):
        summary = evaluate(
            oracle(truth_of(), half(share)), open_source(SCENES), [Refer(n=30, controls=False)], tmp_path / str(share)
        )
        assert value(summary, "refer", "accuracy").value == wanted
        assert value(summary, "refer", "iou").value == pytest.approx(share, abs=1e-6)
        rows = [json.loads(line) for line in (tmp_path / str(share) / "records" / "refer.jsonl").read_text().splitlines()]
        again = Refer().summarise(rows[::-1])
        assert again[0].value == wanted and again[0].low == pytest.approx(value(summary, "refer", "accuracy").low, abs=0.02)


def test_a_model_that_gives_many_boxes_is_refused_or_gains_nothing():
    known, source = truth_of(), open_source(SCENES)
    by_picture: dict[bytes, list[Region]] = {}
    for (picture, _), region in known.items():
        by_picture.setdefault(picture, []).append(region)

    def several(region):
        return Located([region.box, (0.0, 0.0, 5.0, 5.0)], 1.0)

    with pytest.raises(DiptychError, match="expected one box of four numbers"):
        evaluate(oracle(known, several), source, [Refer(n=5)])
    longer = FunctionModel("long", locate=lambda images, texts: [Located((0, 0, 9, 9), 0.0)] * (2 * len(texts)))
    with pytest.raises(DiptychError, match="exactly one Located for each"):
        evaluate(longer, source, [Refer(n=5)])

    def writes(spam):
        def generate(images, prompts, max_tokens):
            texts = []
            for image, prompt in zip(images, prompts, strict=True):
                phrase = prompt.removeprefix("Give the bounding box of ").removesuffix(" as four numbers.")
                others = [r for r in by_picture.get(image.tobytes(), []) if r.phrase != phrase]
                own = known.get((image.tobytes(), phrase))
                guess = others[0] if others else own
                boxes = [guess, *(by_picture.get(image.tobytes(), []) if spam else [])] if guess else []
                texts.append(", ".join(str([round(edge) for edge in r.box]) for r in boxes if r is not None) or "nothing")
            return texts

        return FunctionModel("writer", generate=generate)

    found = [evaluate(writes(spam), source, ["refer?n=60&convention=xyxy"]) for spam in (False, True)]
    plain, spam = (value(f, "refer", "accuracy") for f in found)
    assert spam.value == plain.value < 0.3, "every true box is among those that it writes"
    assert any("boxes beyond the first" in n["note"] for n in found[1].notes) and not found[0].notes
    skipped = evaluate(writes(False), source, ["refer"]).skipped
    assert "refer?convention=xyxy/1000" in skipped[0]["reason"]


def test_boxes_that_are_missing_or_not_finite_are_wrong_and_bad_true_boxes_cost_themselves_alone():
    regions = [
        Region((5.0, 5.0, 20.0, 20.0), "good"), Region((9.0, 9.0, 4.0, 20.0), "upside down"),
        Region((float("nan"), 0.0, 4.0, 4.0), "nan"), Region((100.0, 0.0, 140.0, 9.0), "outside"), Region((30.0, 5.0, 50.0, 20.0), "fine"),
    ]  # fmt: skip
    source = Pictures([Sample("a", image=noise(0), regions=regions), Sample("b", image=noise(1))])
    items = Refer().items(source)
    assert [q.phrase for q in items] == ["good", "fine"]
    assert {p.item for p in items.problems} == {"a, region 2", "a, region 3", "a, region 4"}
    says = {"good": None, "fine": (float("nan"), 1.0, 2.0, 3.0)}
    model = FunctionModel("m", locate=lambda images, texts: [Located(says[t], float("nan")) for t in texts])
    summary = evaluate(model, source, [Refer(controls=False)])
    assert value(summary, "refer", "accuracy").value == 0.0 and value(summary, "refer", "accuracy").n == 2
    with pytest.raises(NotApplicable, match="no regions"):
        Refer().items(open_source("openmoji:all"))


def test_phrases_with_several_boxes():
    box, other = (0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0)
    sample = Sample("a", image=noise(0), regions=[Region(box, "two men"), Region(other, "two men"), Region(box, "hair")])
    source = Pictures([sample])
    assert [q.phrase for q in Refer().items(source)] == ["hair"], "an ambiguous phrase is left out"
    query = Phrase().items(source)[0]
    assert query.boxes == [box, other]
    credit = Phrase().credit
    assert credit(query, Answer(other)) == {"recall@1/any": 1.0, "recall@1/merged": 0.0}
    assert credit(query, Answer((0.0, 0.0, 30.0, 10.0))) == {"recall@1/any": 0.0, "recall@1/merged": 1.0}
    assert credit(query, Answer(None)) == {"recall@1/any": 0.0, "recall@1/merged": 0.0}
    chance = Phrase().without_model(query)["random"]
    assert chance == {"recall@1/any": 1.0, "recall@1/merged": 0.0}


# --- written boxes ---


def test_numbers_in_texts():
    assert numbers_of("[12, 30, 45.5, 60]") == [[12, 30, 45.5, 60]]
    assert numbers_of("x1=3, y1=4, x2=8, y2=9") == [[3, 4, 8, 9]]
    assert numbers_of("<box>(0.1,.2),(0.3,0.4)</box> and <box>(1,2),(3,4)</box>") == [[0.1, 0.2, 0.3, 0.4], [1, 2, 3, 4]]
    assert numbers_of('{"bbox_2d": [3, 4, 8, 9], "label": "it"}') == [[3, 4, 8, 9]]
    assert numbers_of("<loc0100><loc0200><loc0300><loc0400> it") == [[100, 200, 300, 400]]
    assert numbers_of("there are 3 fish") == [] and numbers_of("1 2 3") == []
    picture = np.zeros((100, 200, 3), np.uint8)
    assert read("[500, 100, 250, 900]", picture, convention("xyxy/1000")).box == (50, 10, 100, 90)
    assert read("no box", picture, convention("xyxy")).box is None


PLANTED = ["xyxy", "xywh", "xyxy/1", "yxyx/1000", "center/1", "xyxy/100", "xywh/1000", "xyxy/1@padded", "yxyx"]


@pytest.mark.parametrize(("name", "blur"), [*((name, 0.01) for name in PLANTED), ("xyxy/1000", 0.0), ("xyxy", 0.0)])
def test_a_planted_convention_is_named(name, blur):
    how, known, rng = convention(name), {}, np.random.default_rng(0)
    for shown in cards():
        known[shown.image.tobytes(), f"Give the bounding box of {shown.phrase} as four numbers."] = shown
    digits = {0: 0, 1: 3, 100: 0, 999: 0, 1000: 0}[how.scale]

    def generate(images, prompts, max_tokens):
        texts = []
        for image, prompt in zip(images, prompts, strict=True):
            shown = known[image.tobytes(), prompt]
            size = image.shape[:2]
            box = [edge + blur * rng.normal() * max(size) for edge in shown.box]
            texts.append(f"The box is [{', '.join(str(round(n, digits)) for n in how.numbers(box, *size))}].")
        return texts

    model = FunctionModel("foreign", generate=generate)
    found = revealed_by(model)
    assert str(found.named) == name
    assert found.same == (() if how.scale != 1000 else (convention(f"{how.order}/999"),)), "1000 and 999 say nearly the same"
    summary = evaluate(model, None, [BoxConvention()])
    assert value(summary, "box-convention", "overlap").value > 0.8
    assert any(f"it writes boxes as {found.named}" in n["note"] for n in summary.notes)


def test_answers_that_no_convention_explains_are_said_to_be_so():
    rng, shown = np.random.default_rng(0), cards()
    assert reveal(shown, [rng.uniform(0, 300, 4).tolist() for _ in shown]).named is None
    nothing = reveal(shown, [None] * len(shown))
    assert nothing.named is None and nothing.answered == 0 and "no known convention" in nothing.sentence()
    wide = [s for s in shown if s.image.shape[:2] == (480, 480)]
    square = reveal(wide, [convention("xyxy/1").numbers(s.box, *s.image.shape[:2]) for s in wide])
    assert square.named == Convention("xyxy", 1) and Convention("xyxy", 1, True) in square.same, (
        "on squares padding changes nothing"
    )
    for how in every():
        for s in shown:
            assert iou(how.box(how.numbers(s.box, *s.image.shape[:2]), *s.image.shape[:2]), s.box) > 0.999


# --- pointing ---


def test_pointing_by_heat_box_and_mask():
    mask = np.zeros((40, 60), bool)
    mask[10:20, 10:30] = True
    query = Query("q", "q", noise(0), "it", [(10.0, 10.0, 30.0, 20.0)], [mask], [(10.0, 10.0, 30.0, 20.0), (40.0, 0.0, 50.0, 10.0)])
    heat = np.zeros((40, 60), np.float32)
    heat[15, 12] = 2.0
    credit = Pointing().credit
    assert credit(query, Answer(None, heat=heat))["hits"] == 1.0
    heat[0, 0] = 2.0
    assert credit(query, Answer(None, heat=heat))["hits"] == 0.5, "of two equal maxima one is right"
    assert (
        credit(query, Answer((0.0, 0.0, 12.0, 12.0)))["hits"] == 0.0
        and credit(query, Answer((10.0, 10.0, 14.0, 16.0)))["hits"] == 1.0
    )
    assert credit(query, Answer(None, mask=mask))["hits"] == 1.0 and credit(query, Answer(None))["hits"] == 0.0
    assert Pointing(tolerance=15.0).credit(query, Answer((0.0, 0.0, 12.0, 12.0)))["hits"] == 1.0
    chance = Pointing().without_model(query)["random"]["hits"]
    assert chance == pytest.approx(200 / 2400)
    far = Pointing(tolerance=3.0).without_model(query)["random"]["hits"]
    by_hand = sum(
        min((r + 0.5 - y - 0.5) ** 2 + (c + 0.5 - x - 0.5) ** 2 for r in range(10, 20) for c in range(10, 30)) <= 9
        for y in range(5, 26) for x in range(5, 36)
    )  # fmt: skip
    assert far == pytest.approx(by_hand / 2400)


# --- average precision ---


def plain_ap(boxes, scores, truths, least):
    """COCO's rules for one name, one step at a time."""
    rows = sorted(((s, i, d) for i, ss in enumerate(scores) for d, s in enumerate(ss)), key=lambda r: -r[0])
    taken, flags = set(), []
    for _, i, d in rows:
        best, chosen = least, None
        for t, true in enumerate(truths[i]):
            if (i, t) not in taken and iou(boxes[i][d], true) >= best:
                best, chosen = iou(boxes[i][d], true), t
        flags.append(chosen is not None)
        if chosen is not None:
            taken.add((i, chosen))
    total = sum(map(len, truths))
    points = []
    for k in range(101):
        best = 0.0
        for n in range(1, len(flags) + 1):
            if sum(flags[:n]) / total >= np.linspace(0, 1, 101)[k]:
                best = max(best, sum(flags[:n]) / n)
        points.append(best)
    return sum(points) / 101


def test_average_precision_of_numbers_worked_by_hand():
    box, far = [0, 0, 10, 10], [50, 50, 60, 60]
    truths = [np.array([box]), np.array([far])]
    found = matched([np.array([box, far]), np.array([far])], [np.array([0.9, 0.8]), np.array([0.7])], truths, (0.5,))
    assert found.right.tolist() == [[True, False, True]]
    assert average_precision(found)[0] == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)
    again = matched([np.array([box, box]), np.array([far])], [np.array([0.9, 0.8]), np.array([0.95])], truths, (0.5,))
    assert again.right.tolist() == [[True, True, False]], "the second box of one thing is wrong"
    assert average_precision(again)[0] == pytest.approx(1.0)
    none = matched([np.zeros((0, 4))] * 2, [np.zeros(0)] * 2, truths, (0.5,))
    assert average_precision(none)[0] == 0.0
    assert np.isnan(average_precision(matched([np.array([box])], [np.array([1.0])], [np.zeros((0, 4))], (0.5,)))[0])


def test_average_precision_against_a_plain_reference_and_resamples_against_copies():
    rng = np.random.default_rng(3)
    for _ in range(8):
        truths, boxes, scores = [], [], []
        for _picture in range(5):
            true = rng.uniform(0, 60, (int(rng.integers(0, 4)), 2))
            true = np.concatenate([true, true + rng.uniform(8, 25, true.shape)], 1)
            more = rng.uniform(0, 60, (int(rng.integers(0, 4)), 2))
            guess = np.concatenate([true + rng.normal(0, 2, true.shape), np.concatenate([more, more + 15], 1)])
            truths.append(true)
            boxes.append(guess)
            scores.append(rng.permutation(1000)[: len(guess)] / 1000)
        if not sum(map(len, truths)):
            continue
        found = matched(boxes, scores, truths)
        for t, least in enumerate(np.arange(0.5, 1.0, 0.05).round(2)):
            assert average_precision(found)[t] == pytest.approx(plain_ap(boxes, scores, truths, least), abs=1e-9)
        times = np.array([2, 0, 1, 3, 1])
        copies = [k for k, n in enumerate(times) for _ in range(n)]
        again = matched([boxes[k] for k in copies], [scores[k] for k in copies], [truths[k] for k in copies])
        np.testing.assert_allclose(average_precision(found, times), average_precision(again), atol=1e-9, equal_nan=True)


def test_open_vocabulary_of_an_oracle_with_one_box_a_name():
    address = "scenes:regions?named=1&things=4&distractors=0&length=8"
    known = truth_of(address, 8)
    summary = evaluate(oracle(known), open_source(address), [OpenVocabulary(n=8, most=80)])
    result = value(summary, "open-vocabulary", "AP")
    assert result.value > 0.9 and result.controls["whole"] < 0.2 and result.controls["unscored"] < result.value
    assert result.low <= result.value <= result.high
    (note,) = [n["note"] for n in summary.notes]
    assert "one box for a name and picture" in note
    with pytest.raises(NotApplicable, match="different phrases; this task asks for each"):
        OpenVocabulary(n=30, most=20).items(open_source(SCENES))


# --- segmentation ---


def test_labels_and_mean_overlap_by_hand():
    first, second = np.zeros((2, 4), np.float32), np.zeros((2, 4), np.float32)
    first[0], second[1, 2:] = 1.0, 0.8
    first[1, 3] = 0.4
    labels = labelled([Answer(None, heat=first), Answer(None, heat=second)], 2, 4, 0.5)
    assert labels.tolist() == [[1, 1, 1, 1], [0, 0, 2, 2]]
    assert labelled([Answer(None, heat=first), Answer(None, heat=second)], 2, 4, 0.9).tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]]
    true = np.array([[1, 1, 0, 0], [2, 2, 2, 2]])
    sums = np.ravel(counts(labels, true, 3)).astype(float)
    # background 0 of 4, first 2 of 4, second 2 of 4, the third is nowhere
    assert mean_iou(sums) == pytest.approx((0 + 2 / 4 + 2 / 4) / 3)


def test_segmentation_of_an_oracle():
    address = "scenes:regions?named=1&things=4&distractors=0&length=6"
    summary = evaluate(oracle(truth_of(address, 6)), open_source(address), [Segmentation(n=6), "refer-masks?n=10"])
    result = value(summary, "segmentation", "mIoU")
    assert result.value > 0.9 and result.controls["background"] < 0.1 and result.controls["blind"] < 0.2
    assert value(summary, "segmentation", "pixel_accuracy").controls["background"] > 0.5, "most pixels are background"
    assert value(summary, "refer-masks", "iou").value == pytest.approx(1.0)


def test_runs_can_be_compared_on_the_records_of_every_task_on_regions(tmp_path):
    from diptych.comparison.paired import credits_of_run

    address = "scenes:regions?named=1&things=4&distractors=0&length=4"
    tasks = [Segmentation(n=3), OpenVocabulary(n=3), "refer?n=6", "pointing?n=6", "refer-masks?n=6", "phrase?n=6"]
    evaluate(oracle(truth_of(address, 4)), open_source(address), tasks, tmp_path)
    found = credits_of_run(tmp_path)
    metrics = {("refer", "accuracy"), ("refer", "iou"), ("pointing", "hits"), ("refer-masks", "iou")}
    assert set(found) == {*metrics, ("phrase", "recall@1/any"), ("phrase", "recall@1/merged")}
    assert all(0 <= credit <= 1 for by in found.values() for credit, _ in by.values())


# --- crops ---


def test_crops_and_wrong_versions():
    source = open_source(SCENES)
    pixels = {}

    def vector(text):
        rng = np.random.default_rng(abs(hash(text)) % 2**32)
        v = rng.normal(size=16)
        return v / np.linalg.norm(v)

    for block in task("crops?n=12").items(source):
        if len(block.images) == 1:
            pixels[block.images[0].tobytes()] = block.texts[0]
        else:
            pixels |= {image.tobytes(): text for image, text in zip(block.images, block.texts, strict=True)}
    model = FunctionModel(
        "crops",
        embed_image=lambda images: np.stack([vector(pixels.get(i.tobytes(), "?")) for i in images]),
        embed_text=lambda texts: np.stack([vector(t) for t in texts]),
    )
    summary = evaluate(model, source, ["crops?n=12"])
    for metric in ("crop-to-text", "text-to-crop", "negatives"):
        result = value(summary, "crops", metric)
        assert result.value > 0.95 and result.chance < 0.6 and "blind" in result.controls


# --- leaks ---


def test_pictures_of_the_training_data_are_marked_and_results_given_without_them(tmp_path):
    blurred = []
    for i in range(3):
        small = Image.fromarray(np.random.default_rng(i).integers(0, 256, (5, 6, 3), dtype=np.uint8))
        blurred.append(np.asarray(small.resize((60, 40), Image.Resampling.BICUBIC)))
    for i in (0, 1):  # the first is the same picture as another file, the second another picture
        file = io.BytesIO()
        Image.fromarray(blurred[0] if i == 0 else np.asarray(blurred[2])[::-1].copy()).resize((66, 44)).save(
            file, "JPEG", quality=80
        )
        (tmp_path / f"{i}.jpg").write_bytes(file.getvalue())
        (tmp_path / f"{i}.txt").write_text("a caption")
    regions = [Region((5.0, 5.0, 20.0, 20.0), "it")]
    source = Pictures([Sample(str(i), image=picture, regions=regions) for i, picture in enumerate(blurred)])
    right = FunctionModel("m", locate=lambda images, texts: [Located((5.0, 5.0, 20.0, 20.0), 0.0)] * len(texts))
    summary = evaluate(right, source, [Refer(train=str(tmp_path), controls=False)])
    rows = {row["slice"]: row["n"] for row in value(summary, "refer", "accuracy").slices}
    assert rows["leaked=yes"] == 1 and rows["leaked=no"] == 2
    assert any("1 of 3 pictures are near-duplicates" in n["note"] for n in summary.notes)
    clean = Refer(train=str(tmp_path)).items(Pictures([source[1]]))
    assert clean[0].slices["leaked"] == "no"
    records = Records()
    Refer(train=str(tmp_path), controls=False).run(right, clean, records)
    assert "none of 1 pictures" in Refer(train="t").notes(records.all())[0]
