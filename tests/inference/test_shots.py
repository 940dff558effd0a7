"""Which pictures may be shown as examples."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cli_fixture import make_photos
from diptych.benchmarks.answers.questions import Question
from diptych.benchmarks.base import NotApplicable
from diptych.benchmarks.pictures import Crop
from diptych.benchmarks.shots import with_examples
from diptych.benchmarks.tasks import task
from diptych.data.sources import open_source


@pytest.mark.parametrize("kind", ["bytes", "path", "crop"])
def test_a_picture_of_a_benchmarks_file_is_never_shown(tmp_path: Path, kind: str) -> None:
    part = open_source(make_photos(tmp_path, 20)).split("train")
    samples = [part[i] for i in range(len(part))]  # type: ignore[arg-type]

    def question_of(number: int) -> Question:
        file = io.BytesIO()
        Image.fromarray(samples[number].image).save(file, "PNG")
        path = f"elsewhere/{samples[number].id}"
        image: Any = {"bytes": file.getvalue(), "path": path, "crop": Crop(path, (0, 0, 4, 4))}[kind]
        return Question(f"q{number}", f"q{number}", image, "what?", ("a",))

    judged = [question_of(i) for i in range(len(samples) - 2)]
    shown = with_examples(task("captions?shots=2"), judged, part).examples
    assert {e.image.tobytes() for e in shown} == {s.image.tobytes() for s in samples[-2:]}
    with pytest.raises(NotApplicable, match="has 2 that can be shown"):
        with_examples(task("captions?shots=3"), judged, part)
