"""Answer keys of multiple-choice files, and images that a table stores once."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_asking import png, save_pictures, speaker, values

from diptych.benchmarks.answers import choices, mme, pope
from diptych.benchmarks.answers.keys import Options, answer_key, options_of
from diptych.benchmarks.inputs import read_rows
from diptych.benchmarks.run import evaluate
from diptych.benchmarks.tables import Row
from diptych.core.errors import DiptychError


def key_of(options: list[list[Any]], answers: list[Any], kind: str = "auto") -> list[int]:
    rows = [
        Row({"options": o, "answer": a}, f"q.jsonl, line {i}") for i, (o, a) in enumerate(zip(options, answers, strict=True), 1)
    ]
    return answer_key(rows, [options_of(row) for row in rows], kind)


@pytest.mark.parametrize(
    ("options", "answers", "key"),
    [
        ([["B", "A", "C", "D"], ["whale", "krill", "seal", "orca"]], ["A", "C"], [0, 2]),
        ([["B", "A"], ["B", "A"]], ["(b)", "A."], [1, 0]),
        ([["3", "2", "1"]] * 2, [1, "1"], [1, 1]),  # a number among texts is an index, and so all are
        ([["3", "2", "1"]] * 2, ["3", "2"], [0, 1]),  # 3 is no index
        ([["1", "2", "3"], ["0", "1"]], ["0", "1"], [0, 1]),  # 0 is no text of the first
        ([["cat", "dog"], ["cat", "dog"]], ["Cat", "DOG"], [0, 1]),
        ([["cat", "cat", "dog"]] * 2, ["A", "C"], [0, 2]),
        ([["A", "B"], ["A", "B"]], ["A", "B"], [0, 1]),  # both readings are the same
    ],
)
def test_a_file_has_one_kind_of_key(options: list[list[str]], answers: list[Any], key: list[int]) -> None:
    assert key_of(options, answers) == key


@pytest.mark.parametrize(
    ("options", "answers", "message"),
    [
        ([["B", "A", "C"], ["C", "A", "B"]], ["A", "B"], "line 1: field 'answer': 'A' is the option 'B' as one of letters.*--key"),
        ([["3", "2", "1"], ["0", "2", "1"]], ["2", "1"], "'2' is the option '2' as one of texts.*'1' as one of indices from 0"),
        ([[3, 2, 1]] * 2, [2, 1], "'2' is the option '2' as one of texts of options, '1' as one of indices"),
        ([["cat", "dog"]] * 3, ["cat", "dog", "B"], "line 3.*'B'.*2 of the 3 answers are texts of options; write all"),
        ([["x", "y", "z"]] * 3, ["1", "2", "3"], "line 3.*'3' is not one of the 3 options counted from 0.*subtract 1"),
        ([["x", "y"]], ["horse"], "'horse' is not one of the 2 options; expected a letter"),
    ],
)
def test_a_key_that_could_mean_two_things_is_refused(options: list[list[Any]], answers: list[Any], message: str) -> None:
    with pytest.raises(DiptychError, match=message):
        key_of(options, answers)


def test_the_kind_of_key_can_be_given() -> None:
    options = [["B", "A", "C"], ["C", "A", "B"]]
    assert key_of(options, ["A", "B"], "letter") == [0, 1] and key_of(options, ["A", "B"], "text") == [1, 2]
    assert key_of([["3", "2", "1"], ["0", "2", "1"]], ["2", "1"], "index") == [2, 1]
    with pytest.raises(DiptychError, match="'A' is not one of the 3 options.*expected a letter"):
        key_of(options, ["A", "B"], "index")
    with pytest.raises(DiptychError, match="key=leter: valid are auto, letter, text, index.*letter"):
        key_of(options, ["A", "B"], "leter")


def test_columns_keep_their_letters_over_empty_cells(tmp_path: Path) -> None:
    """Of A, B, D the last is D: in the key, in the prompt and in the answers."""
    (tmp_path / "t.tsv").write_text("index\tquestion\tA\tB\tC\tD\tanswer\timage_path\n1\tWhat?\tx\ty\t\tz\tD\tp.png\n")
    row = read_rows(tmp_path / "t.tsv").records()[0]
    assert options_of(row) == Options(["x", "y", "z"], "ABD", True)
    save_pictures(tmp_path, ["p.png"])
    asked = choices.Choices(file=f"{tmp_path}/t.tsv")
    question = asked.items(None)[0]  # type: ignore[arg-type]
    assert question.answers == ("z",) and "D. z" in asked.prompt_for(question) and "C." not in asked.prompt_for(question)
    shown = replace(question, image=np.zeros((2, 2, 3), np.uint8))
    assert asked.example_of(shown, "generate").text == "D"
    for said, credit in (("D", 1), ("C", 0), ("B", 0)):
        assert values(evaluate(speaker({}, said), None, [asked]), "choices") == {"accuracy": credit}
    (tmp_path / "a.jsonl").write_text('{"index": 1, "answer": "D"}\n')
    assert choices.score_files(tmp_path / "t.tsv", tmp_path / "a.jsonl")[0].value == 1


def picture(level: int) -> str:
    return base64.b64encode(png(level)).decode()


@pytest.mark.parametrize(
    ("refers", "images"),
    [
        ([None, "0", None, "2", "2", "4"], 2),  # 5 → 4 → 2
        ([None, "0", "0", "1", "2", None], 2),
        ([None, "0.0", None, "2", "2.0", None], 3),  # as pandas writes whole numbers next to empty cells
    ],
)
def test_rows_that_refer_to_an_image_share_its_cluster(tmp_path: Path, refers: list[str | None], images: int) -> None:
    """Always yes gets half of the answers right and no image whole. The pictures are short in base64."""
    rows = ["index\tquestion\tanswer\tcategory\timage"]
    rows += [f"{i}\t<{i}>?\t{['Yes', 'No'][i % 2]}\tcount\t{picture(9 + i) if r is None else r}" for i, r in enumerate(refers)]
    (tmp_path / "mme.tsv").write_text("\n".join(rows) + "\n")
    (tmp_path / "a.jsonl").write_text("".join(f'{{"index": {i}, "prediction": "Yes"}}\n' for i in range(6)))
    plain, count, _ = mme.score_files(tmp_path / "mme.tsv", tmp_path / "a.jsonl")
    assert plain.clusters == count.clusters == images and plain.value == 0.5
    assert count.value == 50
    found = evaluate(speaker({}, "Yes"), None, [mme.Mme(file=f"{tmp_path}/mme.tsv")])
    assert [r.clusters for r in found.results] == [images, images] and found.results[1].value == count.value


def test_pope_reads_a_table_with_images(tmp_path: Path) -> None:
    """VLMEvalKit's POPE.tsv stores images as MME.tsv does."""
    rows = ["index\tquestion\tanswer\tcategory\timage"]
    rows += [f"{i}\tIs there a cat <{i}>?\t{['Yes', 'No'][i % 2]}\tpopular\t{[picture(10 + i), i - 1][i % 2]}" for i in range(4)]
    (tmp_path / "pope.tsv").write_text("\n".join(rows) + "\n")
    (tmp_path / "a.jsonl").write_text("".join(f'{{"index": {i}, "answer": "No", "prediction": "yes"}}\n' for i in range(4)))
    found = pope.score_files(tmp_path / "pope.tsv", tmp_path / "a.jsonl")[0]
    assert (found.value, found.n, found.clusters) == (0.5, 4, 2)
    asked = evaluate(speaker({(10, "cat"): "yes"}, "no"), None, [pope.Pope(file=f"{tmp_path}/pope.tsv")]).results[0]
    assert (asked.value, asked.n, asked.clusters) == (0.5, 4, 2)
