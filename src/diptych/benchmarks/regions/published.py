"""Published benchmarks of fine differences from their own files: COLA, InpaintCOCO, MMHal-Bench.

FGHE's and FG-BMK's questions of yes and no are read by ``pope?file=…``.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from diptych.benchmarks.answers.open_answers import OpenAnswers
from diptych.benchmarks.answers.questions import Question
from diptych.benchmarks.answers.row_images import RowImages
from diptych.benchmarks.base import Items, NotApplicable
from diptych.benchmarks.inputs import read_json, read_records
from diptych.benchmarks.matching.blocks import Block
from diptych.benchmarks.matching.winoground import EYE, Winoground
from diptych.benchmarks.pictures import ImageRef, Pictures, embedded
from diptych.benchmarks.tables import Row, unique
from diptych.core.errors import DiptychError
from diptych.data.source import Source


@dataclass(frozen=True)
class Cola(Winoground):
    """COLA with several objects (Ray et al., arXiv:2305.03689): two pictures in which objects have exchanged their attributes, each
    with its caption. The file is a list of [image 1, caption 1, image 2, caption 2]; images are addresses, of which the last part
    is the name of a file. The published accuracy is ``image``: each caption chooses its picture.
    """

    name: str = "cola"

    def items(self, source: Source) -> Items:
        """The blocks of the file. Raises DiptychError for another form."""
        if not self.file:
            raise NotApplicable("it reads its own file: cola?file=COLA_multiobjects_matching_benchmark.json&images=DIR")
        pictures = Pictures(self.images, self.file)
        content = read_json(self.file)
        if not isinstance(content, list):
            raise DiptychError(f"{self.file}: expected a list of [image, caption, image, caption]")
        blocks = []
        for number, row in enumerate(islice(content, self.n or None)):
            where = f"{self.file}, entry {number}"
            if not isinstance(row, list) or len(row) != 4 or not all(isinstance(part, str) for part in row):
                raise DiptychError(f"{where}: expected [image, caption, image, caption], four texts")
            images: list[ImageRef] = [pictures.path(Path(row[k]).name, where) for k in (0, 2)]
            blocks.append(Block(str(number), str(number), images, [row[1], row[3]], EYE))
        return Items(blocks)


@dataclass(frozen=True)
class InpaintCoco(Winoground):
    """InpaintCOCO (Rösch et al., arXiv:2404.16365): a picture of COCO and the same with one thing, colour or size painted anew,
    each with its caption. The file is its Parquet: coco_image, coco_caption, inpaint_image, inpaint_caption, concept.
    """

    name: str = "inpaint-coco"

    def items(self, source: Source) -> Items:
        """The blocks of the file."""
        if not self.file:
            raise NotApplicable("it reads its own file: inpaint-coco?file=test.parquet")
        rows = read_records(self.file)[: self.n or None]
        pictures = Pictures(self.images, self.file)
        blocks = [self._of(row, number, pictures) for number, row in enumerate(rows)]
        unique((b.id for b in blocks), self.file)
        return Items(blocks)

    def _of(self, row: Row, number: int, pictures: Pictures) -> Block:
        images: list[ImageRef] = []
        for field in ("coco_image", "inpaint_image"):
            value = row.need(field)
            images.append(pictures.path(value, row.where) if isinstance(value, str) else embedded(value, row.where))
        concept = row.get("concept")
        slices = {"concept": str(concept)} if concept is not None else {}
        return Block(str(number), str(number), images, [row.text("coco_caption"), row.text("inpaint_caption")], EYE, slices)


@dataclass(frozen=True)
class Mmhal(OpenAnswers):
    """MMHal-Bench (Sun et al., arXiv:2309.14525): 96 open questions made to provoke hallucination. The file is its list of
    {question, image_src or image, gt_answer, question_type, question_topic}; answers earn their ROUGE-L with the reference.

    The published score is a judgement from 0 to 6 by a language model, which this is not: read the answers in the records.
    """

    name: str = "mmhal"

    def _question(self, row: Row, images: RowImages, answers: dict[str, Row] | None) -> Question:
        source = row.get("image") or row.text("image_src", "image_id")
        path = images.pictures.path(Path(str(source)).name, row.where)
        name = f"{row.get('image_id', Path(str(source)).stem)}/{row.get('question_type', '')}"
        slices = {key: str(row.get(key)) for key in ("question_type", "question_topic") if row.get(key) is not None}
        return Question(name, str(source), path, row.text("question"), (row.text("gt_answer"),), slices=slices)
