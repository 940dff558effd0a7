"""Published benchmarks of questions about clips, from files in the layout of their downloads; clips show the number of each frame."""

from __future__ import annotations

import csv
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diptych.benchmarks.base import NotApplicable
from diptych.benchmarks.run import evaluate, recompute
from diptych.benchmarks.tables import Row
from diptych.benchmarks.tasks import task
from diptych.benchmarks.video.files import ClipFiles
from diptych.benchmarks.video.published import _tempcompass
from diptych.core.capabilities import Adapter
from diptych.core.errors import DiptychError
from diptych.data.source import BrokenItem
from video_fixture import number, painted, write

WAY = ["it counts up", "it counts down"]


class Reader(Adapter):
    """Reads the numbers that frames show, and says by their order which option is right."""

    name, shows = "reader", "video"
    capabilities = frozenset({"generate", "prompt"})

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.seen: list[list[int]] = []

    def generate(self, images: Any, prompt: Any = "", max_tokens: int = 32, **decoding: Any) -> list[str]:
        self.prompts += prompt
        return [self._say([number(f) for f in clip], p) for clip, p in zip(images, prompt, strict=True)]

    def _say(self, shown: list[int], prompt: str) -> str:
        self.seen.append(shown)
        up, down = (all(f(a, b) for a, b in pairwise(shown)) for f in (int.__lt__, int.__gt__))
        if "A. " in prompt:
            said = WAY[0] if up else WAY[1] if down else ""
            return next((line for line in prompt.split("\n") if said and line.endswith(said)), "I cannot tell")
        return "yes" if up else "no"


class Scorer(Adapter):
    """Scores the texts that count up by how often the next frame has a larger number."""

    name, shows = "scorer", "video"
    capabilities = frozenset({"score"})

    def score(self, images: Any, texts: Any, pairs: Any = None) -> np.ndarray:
        ups = [sum(np.sign(number(b) - number(a)) for a, b in pairwise(i)) for i in images]
        rows = np.array([[up * (1 if "up" in text else -1) for text in texts] for up in ups], dtype=np.float32)
        return rows if pairs is None else rows[pairs[:, 0], pairs[:, 1]]


def dump(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def judged(address: str, model: Any, out: Path | None = None) -> dict[str, Any]:
    found = evaluate(model, None, [task(address)], out)
    assert not found.skipped, found.skipped
    assert not any("each picture" in note["note"] for note in found.notes), "its files hold clips, not pictures"
    return {r.metric: r for r in found.results}


def frames(folder: Path, numbers: range) -> None:
    folder.mkdir(parents=True)
    for place, k in enumerate(numbers):
        Image.fromarray(painted(k)).save(folder / f"{place:05d}.jpg", quality=95)


def test_mvbench(tmp_path: Path) -> None:
    video, rows = tmp_path / "video", {"question": "How does it count?", "candidates": WAY, "answer": WAY[0]}
    write(video / "clevrer" / "video_validation" / "video_1.mp4", n=12)
    write(video / "perception" / "videos" / "video_1.mp4", n=3)  # the same name in another folder
    write(video / "star" / "Charades_v1_480" / "S1.mp4", n=40)
    frames(video / "tvqa" / "frames_fps3_hq" / "scene_1", range(30))
    dump(tmp_path / "json" / "moving_direction.json", [{"video": "video_1.mp4", **rows}, {"video": "gone.mp4", **rows}])
    dump(tmp_path / "json" / "action_sequence.json", [{"video": "S1.mp4", **rows, "start": 1.0, "end": 2.0}])
    dump(tmp_path / "json" / "episodic_reasoning.json", [{"video": "scene_1", **rows, "start": 2.0, "end": 5.0, "fps": 3}])
    model, address = Reader(), f"mvbench?file={tmp_path}/json"
    items = task(address).items(None)
    assert [q.id for q in items] == ["action_sequence:0", "episodic_reasoning:0", "moving_direction:0"]
    assert [(p.item, p.reason) for p in items.problems] == [("moving_direction:1", f"there is no clip 'gone.mp4' in {video}")]
    by = judged(address, model, tmp_path / "out")
    accuracy = by["accuracy"]
    assert accuracy.value == 1 and accuracy.chance == 0.5 and accuracy.n == 3 and by["macro"].value == 1
    assert accuracy.controls["reversed"] == 0 and accuracy.controls["one_frame"] == accuracy.controls["blind"] == 0
    assert accuracy.controls["shuffled_frames"] == 0 and by["accuracy/gain"].value == 1 and accuracy.controls["constant"] == 1
    assert {s["slice"] for s in accuracy.slices} == {
        f"task={t}" for t in ("action_sequence", "episodic_reasoning", "moving_direction")
    }
    whole = [s for s in model.seen if s == sorted(s) and len(set(s)) > 1]
    assert list(range(10, 20)) in whole, "the second second of ten frames a second"
    assert list(range(6, 15)) in whole, "seconds 2 to 5 of three frames a second"
    assert list(range(12)) in whole, "of the folder of this task"
    assert "A. it counts up\nB. it counts down" in model.prompts[0]
    again = recompute(tmp_path / "out")
    assert {r.metric: r.value for r in again.results} == {m: r.value for m, r in by.items()}


def test_tvbench_by_scores_and_a_clip_that_is_broken(tmp_path: Path) -> None:
    for name, n in (("a", 6), ("b", 6)):
        write(tmp_path / "video" / "action_count" / f"{name}.mp4", n=n)
    (tmp_path / "video" / "action_count" / "c.mp4").write_bytes(b"nothing")
    row = {"question": "How does it count?", "candidates": WAY, "answer": WAY[0]}
    dump(tmp_path / "json" / "action_count.json", [{"video": f"{name}.mp4", **row} for name in "abc"])
    address = f"tvbench?file={tmp_path}/json/action_count.json"
    by = judged(address, Scorer(), tmp_path / "out")
    assert by["accuracy"].value == pytest.approx(2 / 3) and by["accuracy"].by == "score" and "macro" not in by
    assert by["accuracy"].controls["reversed"] == 0 and by["accuracy"].controls["one_frame"] == pytest.approx(1 / 3), "ties"
    lines = [json.loads(line) for line in (tmp_path / "out" / "records" / "tvbench.jsonl").read_text().splitlines()]
    broken = next(r for r in lines if r["item"] == "action_count:2")
    assert "cannot be decoded" in broken["failed"]["correct"] and broken["unparsed"]
    dump(tmp_path / "json" / "action_count.json", [{"video": "a.mp4", **row, "answer": "neither"}])
    with pytest.raises(DiptychError, match=r"action_count.json.*'neither' is not one of the candidates"):
        task(address).items(None)


def test_egoschema(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    write(tmp_path / "videos" / "u-1.mp4", n=20)
    options = ["it stands still", WAY[1], "it jumps", WAY[0], "it ends"]
    rows = [{"q_uid": u, "google_drive_id": "x", "question": "What does C do?", **{f"option {k}": o for k, o in enumerate(options)}}
            for u in ("u-1", "u-2")]  # fmt: skip
    dump(tmp_path / "questions.json", rows)
    with pytest.raises(DiptychError, match=r"no .*subset_answers.json; name the file: &answers="):
        task(f"egoschema?file={tmp_path}").items(None)
    dump(tmp_path / "subset_answers.json", {"u-1": 3})
    items = task(f"egoschema?file={tmp_path}").items(None)
    assert [(p.item, p.reason) for p in items.problems] == [("questions.json", "1 question without a published answer")]
    model = Reader()
    by = judged(f"egoschema?file={tmp_path}&frames=8", model)
    assert by["accuracy"].value == 1 and by["accuracy"].chance == 0.2 and all(len(s) == 8 for s in model.seen)
    assert "D. it counts up" in model.prompts[0] and "E. it ends" in model.prompts[0]
    table = {"question_idx": ["0"], "video_idx": ["u-1"], "question": ["What?"], "answer": ["3"],
             "option": [[f"{letter}. {o}" for letter, o in zip("ABCDE", options, strict=True)]]}  # fmt: skip
    pq.write_table(pa.table(table), tmp_path / "test.parquet")
    (item,) = task(f"egoschema?file={tmp_path}/test.parquet").items(None)
    assert item.options == tuple(options) and item.answers == (WAY[0],)


def test_tempcompass(tmp_path: Path) -> None:
    write(tmp_path / "videos" / "1.mp4", n=8)
    write(tmp_path / "videos" / "1_reverse.mp4", n=8)
    q = tmp_path / "questions"
    asked = "How does it count?\nA. it counts down\nB. it counts up\n"
    dump(q / "multi-choice.json", {"1": {"direction": [{"question": asked, "answer": "B. it counts up"}]}})
    dump(q / "yes_no.json", {"1": {"order": [{"question": "Does it count up?", "answer": "yes"}]},
                             "1_reverse": {"order": [{"question": "Does it count down?", "answer": "no"}]}})  # fmt: skip
    better = "Which caption matches better?\nCaption A: it counts up\nCaption B: it counts down"
    dump(q / "caption_matching.json", {"1": {"speed": [{"question": better, "answer": "Caption A: it counts up"}]}})
    dump(q / "captioning.json", {"1": {"speed": [{"question": "Write.", "answer": "B. it counts up"}]}})
    items = task(f"tempcompass?file={q}").items(None)
    assert [i.slices["task"] for i in items] == ["multi-choice", "yes_no", "yes_no", "caption_matching"]
    assert items[0].text == "How does it count?" and items[0].options == (WAY[1], WAY[0]) and items[0].answers == (WAY[0],)
    assert items[1].options == ("yes", "no") and items[3].statements == tuple(WAY) and not items[1].statements
    model = Reader()
    by = judged(f"tempcompass?file={q}", model)
    assert by["accuracy"].value == 0.75 and by["accuracy"].chance == 0.5, "the reversed clip here counts up"
    assert by["macro"].value == pytest.approx((1 + 0.5 + 1) / 3)
    assert any(p == "Does it count up? Please answer yes or no." for p in model.prompts)
    with pytest.raises(DiptychError, match="need a judge"):
        task(f"tempcompass?file={q}/captioning.json").items(None)
    with pytest.raises(DiptychError, match="none of the lines"):
        _tempcompass(Row({"question": "What?\nA. one\nB. two", "answer": "C. three"}, "here"))


def test_video_chatgpt(tmp_path: Path) -> None:
    write(tmp_path / "Test_Videos" / "v_1.mp4", n=8)
    asked = {"Q": "What happens?", "A": "yes"}
    dump(tmp_path / "generic_qa.json", [{"video_name": "v_1", **asked}])
    dump(tmp_path / "temporal_qa.json", [{"video_name": "v_1", "Q": "And then?", "A": "no it does not"}])
    dump(tmp_path / "consistency_qa.json", [{"video_name": "v_1", "Q1": "What is it?", "Q2": "What do you see?", "A": "yes"}])
    address = f"video-chatgpt?file={tmp_path}&videos={tmp_path}/Test_Videos"
    by = judged(address, Reader())
    assert by["accuracy"].n == 4 and by["accuracy"].value == pytest.approx(3 / 4), "the answer 'yes' to four questions"
    assert by["agreement"].value == 1 and by["agreement"].n == 1 and by["accuracy/gain"].value > 0
    skipped = evaluate(Scorer(), None, [task(address)], None).skipped
    assert skipped and "follow a prompt" in skipped[0]["reason"]


def test_grasp(tmp_path: Path) -> None:
    places = ["level1/MovementTrue/0.mp4", "level1/TwoObjectOrdering/0.mp4", "level2/P_Gravity2/0.mp4", "level2/IP_Gravity2/0.mp4"]
    for place in places:
        write(tmp_path / "videos" / place, n=6)
    for name, header, rows in (
        ("level1.csv", ["scene", "video_file", "pos_observation", "neg_observation"],
         [["Movement", f"data/videos/{places[0]}", "moving", "not moving"],
          ["TwoObjectOrdering", f"data/videos/{places[1]}", "red ball,blue cube", "blue cube,red ball"]]),
        ("level2.csv", ["scene", "video_file"], [[p.split("/")[1], f"data/videos/{p}"] for p in places[2:]]),
    ):  # fmt: skip
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
    ordering = "From left to right: {}, {}. Is this true? Answer only with yes or no."
    dump(
        tmp_path / "prompts" / "level1.json",
        {"Movement": {"binary": "It is {}. Is this true?"}, "TwoObjectOrdering": {"binary": ordering}},
    )
    dump(tmp_path / "prompts" / "level2.json", {"Gravity2": "Is it plausible? Answer only with yes or no."})
    items = task(f"grasp?file={tmp_path}").items(None)
    assert [i.answers[0] for i in items] == ["yes", "no", "yes", "no", "yes", "no"] and not items.problems
    assert items[2].text.startswith("From left to right: red ball, blue cube.") and items[4].slices["concept"] == "Gravity"
    assert items[4].image.path != items[5].image.path, "found by their folders, since all have the same name"
    model = Reader()
    by = judged(f"grasp?file={tmp_path}", model)
    assert (
        by["accuracy"].value == 0.5
        and by["accuracy"].controls["constant"] == 0.5
        and "It is moving. Is this true?" in model.prompts
    )
    (tmp_path / "prompts" / "level2.json").unlink()
    with pytest.raises(DiptychError, match=r"level2.json .*&questions=FOLDER"):
        task(f"grasp?file={tmp_path}/level2.csv").items(None)


def test_limits_models_of_pictures_and_questions_of_the_data(tmp_path: Path) -> None:
    write(tmp_path / "video" / "a.mp4", n=6)
    row = {"question": "How does it count?", "candidates": WAY, "answer": WAY[0], "video": "a.mp4"}
    for name in ("one", "two", "three"):
        dump(tmp_path / "json" / f"{name}.json", [row] * 5)
    items = task(f"tvbench?file={tmp_path}/json&n=7").items(None)
    assert [sum(i.slices["task"] == t for i in items) for t in ("one", "three", "two")] == [3, 2, 2], "of each task as many"
    reader = Reader()
    reader.shows = "image"
    skipped = evaluate(reader, None, [task(f"tvbench?file={tmp_path}/json&n=3")], None).skipped
    assert "pooled:reader reads clips" in skipped[0]["reason"]
    with pytest.raises(NotApplicable, match=r"questions from files: mvbench\?file="):
        task("mvbench").items(None)

    class Data:
        """Two clips that bring questions along."""

        address, problems, fields, classes = "data", [], ("video",), []

        def __len__(self) -> int:
            return 2

        def __getitem__(self, i: int) -> Any:
            from diptych.core.sample import Sample, Video

            if i > 1:
                raise BrokenItem(str(i), "none")
            asked = [{"question": "How does it count?", "answer": WAY[i], "options": WAY}]
            order = range(6) if i == 0 else range(5, -1, -1)
            return Sample(
                f"s{i}", extra={"questions": asked}, video=Video([painted(k) for k in order], [float(k) for k in range(6)])
            )

        def fingerprint(self) -> str:
            return "x"

    found = evaluate(Reader(), Data(), [task("video-questions")], None)
    by = {r.metric: r for r in found.results}
    assert by["accuracy"].value == 1 and by["accuracy"].controls["constant"] == 0.5 and by["accuracy"].controls["reversed"] == 0


def test_clips_by_name(tmp_path: Path) -> None:
    for place in ("a/x.webm", "b/x.webm", "b/y.avi"):
        path = tmp_path / place
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    clips = ClipFiles(str(tmp_path))
    assert clips.find("x.webm")[1].startswith("several clips are called 'x.webm'") and clips.find("x.webm", ["none", "b"])[
        0
    ].endswith("b/x.webm")
    assert clips.find("a/x")[0].endswith("a/x.webm") and clips.find("y.mp4")[0].endswith("y.avi"), "converted to another container"
    assert clips.find("z")[1] == f"there is no clip 'z' in {tmp_path}"
    with pytest.raises(DiptychError, match="no such folder"):
        ClipFiles(str(tmp_path / "none"))
