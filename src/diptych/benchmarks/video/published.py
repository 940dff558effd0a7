"""Benchmarks of questions about clips, read from their files as people download them.

| task | files | questions |
|---|---|---|
| ``mvbench`` (Li et al., arXiv:2311.17005) | ``json/`` of 20 tasks, ``video/`` with a folder for each origin | by choice |
| ``tvbench`` (Cores et al., arXiv:2410.07752) | ``json/`` of 10 tasks, ``video/`` with a folder for each task | by choice |
| ``egoschema`` (Mangalam et al., arXiv:2308.09126) | ``questions.json``, ``subset_answers.json``, or Parquet | five options |
| ``tempcompass`` (Liu et al., arXiv:2403.00476) | multi-choice, yes_no and caption_matching``.json`` | by choice, yes or no |
| ``video-chatgpt`` (Maaz et al., arXiv:2306.05424) | ``generic_qa.json``, ``temporal_qa.json``, ``consistency_qa.json`` | open |
| ``grasp`` (Jassim et al., arXiv:2311.09048) | ``level1.csv``, ``level2.csv`` and ``prompts/`` | yes or no |

``file`` is a file, or the folder that holds several; ``videos`` the folder of clips. Questions without their clip are problems.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diptych.benchmarks.answers.keys import LETTERS
from diptych.benchmarks.answers.questions import Question
from diptych.benchmarks.base import Items, NotApplicable
from diptych.benchmarks.inputs import read_json, read_records
from diptych.benchmarks.metrics.captions import Corpus
from diptych.benchmarks.pictures import Clip
from diptych.benchmarks.records import Record, Result
from diptych.benchmarks.results import of_credits
from diptych.benchmarks.tables import Row, unique
from diptych.benchmarks.video.asked import YES_NO, ClipQuestions, limited
from diptych.benchmarks.video.files import ClipFiles
from diptych.core.errors import DiptychError, counted
from diptych.data.source import Problem, Source

# Where the clips of MVBench's tasks come from: the folders below ``video``. The same names occur in several of them.
MVBENCH = {
    **dict.fromkeys(("action_sequence", "action_prediction", "object_interaction"), "star/Charades_v1_480"),
    **dict.fromkeys(("object_shuffle", "action_count", "state_change", "character_order"), "perception/videos"),
    **dict.fromkeys(
        ("object_existence", "moving_direction", "moving_count", "moving_attribute", "counterfactual_inference"),
        "clevrer/video_validation",
    ),
    "action_antonym": "ssv2_video",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "unexpected_action": "FunQA_test/test",
    "action_localization": "sta/sta_video",
    "scene_transition": "scene_qa/video",
    "fine_grained_pose": "nturgbd",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
}


@dataclass(frozen=True)
class Published(ClipQuestions):
    """Base class: a benchmark's own files."""

    name: str = "published"

    def items(self, source: Source) -> Items:
        """The questions of which the clip is there. Raises NotApplicable without ``file``, DiptychError if no question is left."""
        if not self.file:
            raise NotApplicable(f"it reads its questions from files: {self.name}?file=FILE_OR_FOLDER&videos=FOLDER")
        problems: list[Problem] = []
        clips = ClipFiles(self.videos or self._near())
        questions = [q for q in self.read(clips, problems) if q is not None]
        if not questions:
            first = f"; the first: {problems[0].item}: {problems[0].reason}" if problems else ""
            raise DiptychError(f"{self.file}: no question with a clip in {clips.directory}{first}")
        unique((q.id for q in questions), self.file, "question")
        return Items(limited(questions, self.n), problems)

    def read(self, clips: ClipFiles, problems: list[Problem]) -> Iterator[Question | None]:
        """The questions of the files; None for those of which the clip is not there, which are added to ``problems``."""
        raise NotImplementedError

    def _near(self) -> str:
        """Where the clips are if ``videos`` does not say: next to the file or the folder of files."""
        place = Path(self.file)
        folder = place if place.is_dir() else place.parent
        near = [folder / name for name in ("videos", "video")] + [folder.parent / name for name in ("videos", "video")]
        return str(next((p for p in near if p.is_dir()), folder))

    def _files(self, names: Sequence[str] = ()) -> list[Path]:
        """The file, or the .json files of the folder; names: only those, as far as they are there."""
        place = Path(self.file)
        if not place.is_dir():
            return [place]
        found = [place / name for name in names if (place / name).is_file()] if names else sorted(place.glob("*.json"))
        if not found:
            raise DiptychError(f"{place}: none of the benchmark's files in it ({', '.join(names) or '*.json'})")
        return found

    def _asked(
        self, name: str, clip: tuple[str, str], text: str, answers: Sequence[str], problems: list[Problem], **more: Any
    ) -> Question | None:
        """A question about a clip, (path, "") or ("", reason). more: ``start``, ``end``, ``options`` and further fields."""
        path, reason = clip
        if reason:
            problems.append(Problem(name, reason))
            return None
        start, end, options = more.pop("start", None), more.pop("end", None), tuple(more.pop("options", ()))
        image = Clip(path, start, end, self.frames, self.size)
        more.setdefault("statements", self.statements(text, options) if options and options != YES_NO else ())
        return Question(name, path, image, text, tuple(answers), options, **more)


@dataclass(frozen=True)
class MvBench(Published):
    """MVBench: twenty tasks by choice, from the folder of its JSON files, one file for each task, or one of them."""

    name: str = "mvbench"

    def read(self, clips: ClipFiles, problems: list[Problem]) -> Iterator[Question | None]:
        """{video, question, candidates, answer} and, where only a part of the clip counts, start and end in seconds."""
        for path in self._files():
            task = path.stem
            for i, row in enumerate(read_records(path)):
                options = [str(o).strip() for o in row.need("candidates", kind=list)]
                answer = row.text("answer")
                if answer not in options:
                    raise DiptychError(
                        f"{row.where}: field 'answer': '{answer}' is not one of the candidates: {', '.join(options)}"
                    )
                span = _span(row)
                folders = [folder for folder in (MVBENCH.get(task), task) if folder]
                clip = clips.find(row.text("video"), folders)
                more = {"options": options, "slices": {"task": task}, **span}
                yield self._asked(f"{task}:{i}", clip, row.text("question"), [answer], problems, **more)


@dataclass(frozen=True)
class TvBench(MvBench):
    """TVBench: ten tasks that need time, in MVBench's form; clips are in a folder for each task."""

    name: str = "tvbench"


@dataclass(frozen=True)
class EgoSchema(Published):
    """EgoSchema: five options about three minutes. Only 500 answers are published (``answers``); the others cannot be scored."""

    name: str = "egoschema"
    answers: str = ""  # {q_uid: index}; "": subset_answers.json next to the file, if the rows have no answers

    def read(self, clips: ClipFiles, problems: list[Problem]) -> Iterator[Question | None]:
        """{q_uid, question, option 0 … option 4}, or Parquet with question_idx, video_idx, question, option and answer."""
        place = Path(self.file) / "questions.json" if Path(self.file).is_dir() else Path(self.file)
        rows = read_records(place)
        known = {} if all(row.get("answer") is not None for row in rows) else self._answers_of(place)
        without = 0
        for row in rows:
            name = row.text("q_uid", "question_idx", "video_idx")
            right = known.get(name, row.get("answer"))
            if right in (None, ""):
                without += 1
                continue
            options = _without_letters(_five(row))
            if not str(right).isdigit() or int(str(right)) >= len(options):
                raise DiptychError(f"{row.where}: the answer '{right}' is not the index of an option, from 0 to {len(options) - 1}")
            clip = clips.find(row.text("video_idx", "q_uid"))
            yield self._asked(name, clip, row.text("question"), [options[int(str(right))]], problems, options=options)
        if without:
            problems.append(Problem(place.name, f"{counted(without, 'question')} without a published answer"))

    def _answers_of(self, place: Path) -> dict[str, Any]:
        path = Path(self.answers) if self.answers else place.parent / "subset_answers.json"
        if not path.is_file():
            raise DiptychError(f"{place}: the rows have no answers, and there is no {path}; name the file: &answers=FILE")
        found = read_json(path)
        if not isinstance(found, dict):
            raise DiptychError(f"{path}: expected {{q_uid: index of the answer}}")
        return found


@dataclass(frozen=True)
class TempCompass(Published):
    """TempCompass: action, direction, speed, order and change, by choice, by yes or no, and by two captions. Its file of captions
    to be written needs a judge, and is not read.
    """

    name: str = "tempcompass"

    def read(self, clips: ClipFiles, problems: list[Problem]) -> Iterator[Question | None]:
        """{clip: {dimension: [{question, answer}]}}; the options of a question are lines of it."""
        for path in self._files(("multi-choice.json", "yes_no.json", "caption_matching.json")):
            if path.stem == "captioning":
                raise DiptychError(
                    f"{path}: written captions need a judge; read multi-choice.json, yes_no.json, caption_matching.json"
                )
            content = read_json(path)
            if not isinstance(content, dict) or not all(isinstance(of, dict) for of in content.values()):
                raise DiptychError(f"{path}: expected {{clip: {{dimension: [{{question, answer}}]}}}}")
            for name, dimensions in content.items():
                clip = clips.find(name)
                for dimension, rows in dimensions.items():
                    for i, fields in enumerate(rows):
                        row = Row(fields, f"{path}, {name}, {dimension}[{i}]")
                        text, options, right = _tempcompass(row)
                        more: dict[str, Any] = {"options": options, "slices": {"task": path.stem, "dimension": dimension}}
                        if path.stem == "caption_matching":
                            more["statements"] = options  # captions themselves
                        yield self._asked(f"{path.stem}:{name}:{dimension}:{i}", clip, text, [right], problems, **more)


@dataclass(frozen=True)
class VideoChatGpt(Published):
    """Video-ChatGPT's benchmark: open answers, which the authors have a language model judge from 0 to 5. Here an answer earns its
    ROUGE-L to the reference, which is no substitute; the answers are in the records. ``agreement``: ROUGE-L between the answers to
    the two wordings of a question (consistency_qa.json).
    """

    name: str = "video-chatgpt"
    needs: tuple[str, ...] = ("prompt",)
    by: str = "generate"
    prompt: str = "{question}"
    max_tokens: int = 256

    def read(self, clips: ClipFiles, problems: list[Problem]) -> Iterator[Question | None]:
        """{video_name, Q, A}, or {video_name, Q1, Q2, A}."""
        for path in self._files(("generic_qa.json", "temporal_qa.json", "consistency_qa.json")):
            task = path.stem.removesuffix("_qa")
            for i, row in enumerate(read_records(path)):
                clip, answer = clips.find(row.text("video_name")), row.text("A")
                texts = [row.text("Q")] if row.get("Q") is not None else [row.text("Q1"), row.text("Q2")]
                for k, text in enumerate(texts, 1):
                    group = f"{task}:{i}" if len(texts) > 1 else ""
                    name = f"{task}:{i}.{k}" if group else f"{task}:{i}"
                    yield self._asked(name, clip, text, [answer], problems, slices={"task": task}, group=group)

    def credit(self, record: Record, answer: str) -> float:
        """ROUGE-L to the reference."""
        return float(Corpus({"": record["answers"]}, {"": answer}).rouge_l()[0])

    def more_results(self, records: list[Record]) -> list[Result]:
        """How far the answers to two wordings of a question agree."""
        pairs: dict[str, list[Record]] = {}
        for r in records:
            if r.get("group") and r.get("answer"):
                pairs.setdefault(r["group"], []).append(r)
        both = [of for of in pairs.values() if len(of) == 2]
        if not both:
            return []
        credits = [float(Corpus({"": [a["answer"]]}, {"": b["answer"]}).rouge_l()[0]) for a, b in both]
        return [of_credits(self.name, "agreement", credits, [of[0]["cluster"] for of in both])]


@dataclass(frozen=True)
class Grasp(Published):
    """GRASP: whether a statement about a simulated scene is true (level 1), and whether what happens is plausible (level 2,
    intuitive physics). ``file``: level1.csv, level2.csv (of its prepare_data.py) or the folder of both.
    """

    name: str = "grasp"
    questions: str = ""  # the folder of level1.json and level2.json; "": ``prompts`` next to the file

    def read(self, clips: ClipFiles, problems: list[Problem]) -> Iterator[Question | None]:
        """Level 1: scene, video_file, pos_observation, neg_observation; level 2: scene (P_… plausible, IP_… not), video_file."""
        place = Path(self.file)
        for path in [place / f"level{k}.csv" for k in (1, 2) if (place / f"level{k}.csv").is_file()] or [place]:
            rows = read_records(path)
            first = "pos_observation" in rows[0]
            prompts = self._prompts(path, 1 if first else 2)
            for i, row in enumerate(rows):
                scene, where = row.text("scene"), row.text("video_file")
                clip = clips.find(posixpath.join(*where.replace("\\", "/").split("/")[-3:]))
                if not first:
                    kind, _, concept = scene.partition("_")
                    text = self._text(prompts, concept, row)
                    slices = {"task": "level2", "concept": re.sub(r"\d+$", "", concept)}
                    yield self._yes_no(f"level2:{i}", clip, text, kind == "P", problems, slices)
                    continue
                for k, (column, true) in enumerate((("pos_observation", True), ("neg_observation", False))):
                    stated = [part.strip() for part in row.text(column).split(",")]
                    text = _filled(self._text(prompts, scene, row), stated, row)
                    yield self._yes_no(f"level1:{i}.{k}", clip, text, true, problems, {"task": "level1", "concept": scene})

    def _yes_no(
        self, name: str, clip: tuple[str, str], text: str, true: bool, problems: list[Problem], slices: dict[str, str]
    ) -> Question | None:
        asked = self._asked(name, clip, text, [YES_NO[not true]], problems, options=YES_NO, slices=slices)
        return asked and replace(asked, prompt=self.prompt or "{question}")  # its texts ask for yes or no themselves

    def _prompts(self, path: Path, level: int) -> dict[str, Any]:
        folder = Path(self.questions) if self.questions else path.parent / "prompts"
        file = folder / f"level{level}.json"
        if not file.is_file():
            raise DiptychError(f"{path}: there is no {file} with the texts of its questions; name the folder: &questions=FOLDER")
        found = read_json(file)
        if not isinstance(found, dict):
            raise DiptychError(f"{file}: expected {{scene: question}}")
        return found

    def _text(self, prompts: dict[str, Any], scene: str, row: Row) -> str:
        found = prompts.get(scene)
        text = found.get("binary") if isinstance(found, dict) else found
        if not isinstance(text, str):
            raise DiptychError(f"{row.where}: there is no question for the scene '{scene}' among {', '.join(prompts)}")
        return text


def _span(row: Row) -> dict[str, float]:
    """start and end in seconds, of a row that has both."""
    if row.get("start") is None or row.get("end") is None:
        return {}
    try:
        return {"start": float(row["start"]), "end": float(row["end"])}
    except (TypeError, ValueError):
        raise DiptychError(f"{row.where}: start and end must be seconds") from None


def _five(row: Row) -> list[str]:
    """The options of a row of EgoSchema."""
    given = row.get("option", row.get("options"))
    if given is None:
        given = [row[f"option {k}"] for k in range(5) if row.get(f"option {k}") is not None]
    if isinstance(given, str):
        given = json.loads(given)
    if not isinstance(given, list) or len(given) < 2:
        raise DiptychError(f"{row.where}: expected the fields 'option 0' to 'option 4', or a list 'option'")
    return [str(o).strip() for o in given]


def _without_letters(options: list[str]) -> list[str]:
    """Options without the letters that some files put before them, if all have theirs."""
    cut = [re.match(rf"\(?{letter}[.):]\s*(.*)", o, re.DOTALL) for letter, o in zip(LETTERS, options, strict=False)]
    return [m[1] for m in cut if m] if all(cut) else options


def _tempcompass(row: Row) -> tuple[str, tuple[str, ...], str]:
    """Question, options and right option. The lines behind the question are its options, each after a letter or a word and a sign;
    a question without such lines is answered by yes or no.
    """
    text, answer = row.text("question"), row.text("answer")
    question, *lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        if answer.lower() not in YES_NO:
            raise DiptychError(f"{row.where}: field 'answer': expected yes or no, found '{answer}'")
        return question, YES_NO, answer.lower()
    heads = [re.match(r"(?:[A-Z][.)]|(?:Option|Sentence|Caption)\s*\w+:)\s*", line) for line in lines]
    options = tuple(line[m.end() :] if m else line for m, line in zip(heads, lines, strict=True))
    if answer not in lines:
        raise DiptychError(f"{row.where}: field 'answer': '{answer}' is none of the lines of the question")
    return question, options, options[lines.index(answer)]


def _filled(text: str, stated: Sequence[str], row: Row) -> str:
    """A text with what is stated in place of each ``{}``."""
    if text.count("{}") != len(stated):
        raise DiptychError(f"{row.where}: {counted(len(stated), 'thing')} for the {text.count('{}')} places of its question")
    for thing in stated:
        text = text.replace("{}", thing, 1)
    return text


PUBLISHED = {cls.name: cls for cls in (MvBench, TvBench, EgoSchema, TempCompass, VideoChatGpt, Grasp)}
