"""Benchmarks of fine differences from their own files, and DCI's directory."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diptych.benchmarks.regions.published import Cola, InpaintCoco, Mmhal
from diptych.benchmarks.run import evaluate
from diptych.benchmarks.tasks import task
from diptych.core.capabilities import FunctionModel
from diptych.core.errors import DiptychError
from diptych.core.sample import Region
from diptych.data.sources import open_source
from sources_fixture import own_cache  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("own_cache")


def png(value: int, height: int = 8, width: int = 12) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def by_brightness(texts: dict[str, int]) -> FunctionModel:
    """Scores a text by how near the picture is to its brightness."""

    def score(images, words):
        return np.array([[-abs(float(i.mean()) - texts[w]) for w in words] for i in images], np.float32)

    return FunctionModel("bright", score=score)


def test_cola_is_read_and_scored_as_published(tmp_path):
    rows = []
    for k in range(3):
        for part in (0, 1):
            (tmp_path / f"{k}{part}.png").write_bytes(png(60 * k + 40 * part))
        rows.append([f"https://there/vg/{k}0.png", f"a {k}", f"https://there/vg/{k}1.png", f"b {k}"])
    (tmp_path / "cola.json").write_text(json.dumps(rows))
    known = {f"a {k}": 60 * k for k in range(3)} | {f"b {k}": 60 * k + 40 for k in range(3)}
    known["b 1"] = 0  # of the second pair the second caption chooses the darker picture
    summary = evaluate(by_brightness(known), None, [Cola(file=str(tmp_path / "cola.json"), images=str(tmp_path))])
    values = {r.metric: r.value for r in summary.results}
    assert values["image"] == pytest.approx(2 / 3) and set(values) == {"text", "image", "group"}
    (tmp_path / "wrong.json").write_text(json.dumps([["a", "b", "c"]]))
    with pytest.raises(DiptychError, match="entry 0: expected .image, caption, image, caption., four texts"):
        Cola(file=str(tmp_path / "wrong.json")).items(None)
    assert "reads its own file" in evaluate(by_brightness({}), open_source("scenes:small"), ["cola"]).skipped[0]["reason"]


def test_inpaint_coco_is_read_from_its_parquet(tmp_path):
    table = pa.table({
        "concept": ["color", "object"],
        "coco_image": [{"bytes": png(0), "path": "a"}, {"bytes": png(100), "path": "c"}],
        "coco_caption": ["dark", "grey"],
        "inpaint_image": [{"bytes": png(50), "path": "b"}, {"bytes": png(200), "path": "d"}],
        "inpaint_caption": ["dim", "bright"],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "test.parquet")
    model = by_brightness({"dark": 0, "dim": 50, "grey": 100, "bright": 200})
    summary = evaluate(model, None, [InpaintCoco(file=str(tmp_path / "test.parquet"))])
    result = next(r for r in summary.results if r.metric == "group")
    assert result.value == 1.0 and {row["slice"] for row in result.slices} == {"concept=color", "concept=object"}


def test_mmhal_fghe_and_fg_bmk(tmp_path):
    (tmp_path / "5_o.png").write_bytes(png(3))
    row = {"question_type": "attribute", "question_topic": "indoor", "image_id": "ab", "image_src": "https://there/5_o.png",
           "image_content": ["Cup"], "question": "What colour is the cup?", "gt_answer": "the cup is blue", "model_answer": ""}  # fmt: skip
    (tmp_path / "response_template.json").write_text(
        json.dumps([row, {**row, "question_type": "counting", "gt_answer": "two cups"}])
    )
    model = FunctionModel("says", generate=lambda images, prompts, max_tokens: ["the cup is blue"] * len(images))
    summary = evaluate(model, None, [Mmhal(file=str(tmp_path / "response_template.json"), images=str(tmp_path))])
    result = next(r for r in summary.results if r.metric == "accuracy")
    assert result.n == 2 and 0.5 <= result.value < 1
    fghe = {"question_id": 1, "image": "5_o.png", "text": "Is the cup blue? Please answer yes or no.", "label": "yes"}
    bmk = {
        "question_id": 2,
        "image": "5_o.png",
        "prompt": "Is the genus of the object raven? Answer with yes or no.",
        "class": "no",
        "category": "generic",
    }
    for name, rows, wanted in (("fghe", [fghe], 1.0), ("bmk", [bmk], 0.0)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        yes = FunctionModel("yes", generate=lambda images, prompts, max_tokens: ["Yes"] * len(images))
        each = task(f"pope?file={tmp_path}/{name}.jsonl&images={tmp_path}")
        assert next(r for r in evaluate(yes, None, [each]).results if r.metric == "accuracy").value == wanted


def test_dci_gives_summaries_masks_and_all_negatives(tmp_path):
    mask = np.zeros((8, 12), np.uint8)
    mask[2:6, 3:9] = 1
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    part = {"outer_mask": base64.b64encode(file.getvalue()).decode(), "area": 24, "idx": 0, "requirements": [], "parent": -1,
            "bounds": {"topLeft": {"x": 3, "y": 2}, "bottomRight": {"x": 9, "y": 6}}, "label": "dog", "caption": "It is  brown.",
            "mask_quality": 0}  # fmt: skip
    content = {
        "image": "sa_1.png", "short_caption": "A dog.", "extra_caption": "", "mask_keys": ["0", "1", "2", "3"],
        "mask_data": {"0": part, "1": {**part, "mask_quality": 1}, "2": {**part, "mask_quality": 2}, "3": {**part, "bounds": {}},
                      "4": {**part, "bounds": {"topLeft": {"x": 9, "y": 2}, "bottomRight": {"x": 3, "y": 6}}}},
        "summaries": {"base": ["A brown dog.", "A dog sits."], "0": ["a brown dog"]},
        "negatives": {"0": {"swaps": ["a white dog"], "layout": ["a dog that is brown below", "a white dog"], "basic": ["a brown cat"]}},
    }  # fmt: skip
    (tmp_path / "complete").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "complete" / "a.json").write_text(json.dumps(content))
    (tmp_path / "complete" / "b.json").write_text(json.dumps({**content, "summaries": None, "image": "sa_2.png"}))
    (tmp_path / "complete" / "c.json").write_text(json.dumps({"image": "sa_3.png"}))
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["a.json"], "valid": ["b.json"], "test": []}))
    for i in (1, 2):
        (tmp_path / "photos" / f"sa_{i}.png").write_bytes(png(i))
    source = open_source(f"dci:{tmp_path}/complete?masks=true")
    first, second = (source[i] for i in range(2))
    assert first.captions == ["A brown dog.", "A dog sits."] and second.captions == ["A dog."]
    dog, low = first.fields["regions"]
    wrong = ("a white dog", "a dog that is brown below", "a brown cat")
    assert (dog.box, dog.phrase, dog.negatives) == ((3.0, 2.0, 9.0, 6.0), "a brown dog", wrong) and np.array_equal(
        dog.mask, mask > 0
    )
    assert low.phrase == "dog" and low.negatives == ()
    assert second.fields["regions"][0].phrase == "dog: It is brown."
    problems = {p.item: p.reason for p in source.problems}
    assert (
        "no bounds" in problems["a.json, mask 3"]
        and "empty box" in problems["a.json, mask 4"]
        and "mask_data" in problems["c.json"]
    )
    assert len(source.split("validation")) == 1 and len(source.split("train")) == 1
    bare = open_source(f"dci:{tmp_path}/complete")[0].fields["regions"]
    assert bare[0] == Region((3.0, 2.0, 9.0, 6.0), "a brown dog", None, wrong)
