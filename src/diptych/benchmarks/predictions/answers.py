"""Answers in words: VQA, yes/no questions about objects, multiple choice."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from diptych.benchmarks.inputs import Table, match, read_rows
from diptych.benchmarks.metrics import multiple_choice as choice
from diptych.benchmarks.metrics import pope, vqa
from diptych.benchmarks.predictions.common import chosen, named_columns, of_credits, of_sums, slices
from diptych.benchmarks.records import Result
from diptych.benchmarks.statistics import band, mean
from diptych.core.errors import DiptychError, nearest

MODES = ("plain", "circular", "mme")


def judge_vqa(questions: Path, annotations: Path, results: Path) -> list[Result]:
    """VQA accuracy of VQAv2 files, with slices by answer type; constant: the answer that most questions have as their commonest."""
    asked, true, said = read_rows(questions, "questions"), read_rows(annotations, "annotations"), read_rows(results)
    ids, key = asked.unique("question_id"), "question_id"
    image = dict(zip(ids, asked.column("image_id", "id"), strict=True))
    answer = dict(zip(said.unique(key), said.column("answer", "text"), strict=True))
    match(list(answer), ids, said, asked)
    match(true.unique(key), ids, true, asked)
    order = true.unique(key)
    humans: list[list[str]] = []
    for i, given in enumerate(true.column("answers", "list")):
        texts = [t for a in given if isinstance(t := a.get("answer") if isinstance(a, dict) else a, str)]
        if len(texts) < 4 or len(texts) != len(given):
            raise DiptychError(f"{true.where(i)}: 'answers' must be a list of at least 4 objects with an 'answer' (VQAv2 has 10)")
        humans.append(texts)
    credits = np.array([vqa.vqa_accuracy(answer[q], h) for q, h in zip(order, humans, strict=True)])
    clusters = [image[q] for q in order]
    common = Counter(Counter(map(vqa.normalise_answer, h)).most_common(1)[0][0] for h in humans)
    usual = min(common, key=lambda a: (-common[a], a))
    constant = np.array([vqa.vqa_accuracy(usual, h) for h in humans])

    def judge(index: np.ndarray) -> Result:
        return of_credits("vqa", "accuracy", credits[index], chosen(clusters, index))

    names = named_columns(true)
    every = np.arange(len(credits))
    return [replace(judge(every), controls={"constant": mean(constant)}, slices=slices(names, judge))]


def judge_pope(questions: Path, answers: Path) -> list[Result]:
    """POPE's metrics; constant: yes to everything; published: the rule of its own script, by which all that is not no is yes."""
    asked = read_rows(questions)
    ids, labels = asked.unique("question_id"), []
    for i, label in enumerate(asked.column("label", "text")):
        if label.strip().lower() not in ("yes", "no"):
            raise DiptychError(f"{asked.where(i)}: 'label' must be yes or no, got {label!r}")
        labels.append(label.strip().lower() == "yes")
    clusters = asked.column("image", "id", aliases=("image_id",))
    said = _answers_in_order(read_rows(answers), asked, ids)
    parsed = [pope.parse_yes_no(text) for text in said]
    counts, bands = pope.pope_counts(parsed, labels), pope.pope_band(parsed, labels)
    constant = pope.pope_scores([True] * len(labels), labels)
    published = pope.pope_scores([pope.published_yes_no(text) for text in said], labels)
    lost = sum(p is None for p in parsed)
    return [
        of_sums(
            "pope",
            name,
            counts,
            partial(_of, name),
            clusters,
            chance=0.5 if name == "accuracy" else None,
            unparsed=lost,
            band=bands[name] if lost else None,
            controls={"constant": constant[name], "published": published[name]},
        )
        for name in pope.METRICS
    ]


def _of(name: str, sums: np.ndarray) -> np.ndarray:
    return pope.pope_of_counts(sums)[name]


def _answers_in_order(said: Table, asked: Table, ids: Sequence[str]) -> list[str]:
    """The answers in the order of the questions: joined by question_id, or, where there is none, line by line."""
    texts = said.column("answer", "text", aliases=("text",))
    if said.has("question_id"):
        found = dict(zip(said.unique("question_id"), texts, strict=True))
        match(list(found), ids, said, asked)
        return [found[i] for i in ids]
    if len(said) != len(asked):
        raise DiptychError(f"{said.path}: {len(said)} answers without question_id for the {len(asked)} questions of {asked.path}")
    questions, repeated = asked.column("text", "text"), said.column("question", "text")
    for i, (a, b) in enumerate(zip(questions, repeated, strict=True)):
        if a.strip() != b.strip():
            raise DiptychError(
                f"{said.where(i)}: answers without question_id stand in the order of the questions, but '{b}' is not '{a}'"
            )
    return texts


def judge_choices(questions: Path, answers: Path, mode: str = "plain") -> list[Result]:
    """Multiple choice. ``mode``: plain, circular (every rotation of a question must be right) or mme (out of 200 a subtask)."""
    if mode not in MODES:
        raise DiptychError(f"--mode {mode}: no such mode{nearest(mode, MODES)}")
    asked, said = read_rows(questions), read_rows(answers)
    ids = asked.unique("id", aliases=("index", "question_id"))
    place = {each: i for i, each in enumerate(said.unique("id", aliases=("index", "question_id")))}
    match(list(place), ids, said, asked)
    options = _options(asked, yes_no=mode == "mme")
    right = _right(asked, options)
    images = asked.column("image", "id", aliases=("image_id", "image_path"), default=None)
    clusters = [image or each for image, each in zip(images, ids, strict=True)]
    scored = said.has("scores")
    given = said.column("scores", "scores") if scored else said.column("answer", "text", aliases=("prediction", "text"))
    given = [given[place[each]] for each in ids]
    ties = nans = 0
    if scored:
        for i, (scores, names) in enumerate(zip(given, options, strict=True)):
            if len(scores) != len(names):
                raise DiptychError(f"{said.where(place[ids[i]])}: {len(scores)} scores for {len(names)} options")
        credits: list[float | None] = [choice.choice_credit(np.array(s), r) for s, r in zip(given, right, strict=True)]
        ties = sum(0 < c < 1 for c in credits if c is not None)
        nans = sum(int(np.isnan(s).sum()) for s in given)
    else:
        parse = _yes_no if mode == "mme" else choice.parse_choice
        parsed = [parse(text, names) for text, names in zip(given, options, strict=True)]
        credits = [None if p is None else float(p == r) for p, r in zip(parsed, right, strict=True)]
    strict = np.array([0.0 if c is None else c for c in credits])
    most = max(map(len, options))
    constants = [mean([float(r == k) for r in right]) for k in range(most)]
    beside: dict[str, Any] = {"ties": ties, "nans": nans, "unparsed": sum(c is None for c in credits)}

    def judge(index: np.ndarray) -> Result:
        return of_credits("multiple-choice", "accuracy", strict[index], chosen(clusters, index))

    plain = replace(
        judge(np.arange(len(ids))),
        **beside,
        chance=mean([1 / len(names) for names in options]),
        band=band(credits) if beside["unparsed"] else None,
        controls={"constant": max(constants)},
        slices=slices(named_columns(asked), judge),
    )
    if mode == "plain":
        return [plain]
    if mode == "circular":
        return [plain, _circular(asked, ids, credits, strict, clusters, options, scored, beside)]
    return [plain, *_mme(asked, ids, credits, strict, images, beside)]


def _options(asked: Table, yes_no: bool) -> list[list[str]]:
    if asked.has("options"):
        found = asked.column("options", "texts")
    elif yes_no:
        return [["yes", "no"]] * len(asked)
    elif asked.has("A"):  # a table with a column an option (MMBench, SEED)
        found = [[row[c] for c in choice.LETTERS if row.get(c) not in (None, "", "nan")] for row in asked.rows]
    else:
        raise DiptychError(f"{asked.where(0)}: no field 'options' (a list) and no columns A, B, …")
    for i, names in enumerate(found):
        if len(names) < 2 or len(names) > len(choice.LETTERS):
            raise DiptychError(f"{asked.where(i)}: {len(names)} options; expected 2 to {len(choice.LETTERS)}")
    return found


def _right(asked: Table, options: list[list[str]]) -> list[int]:
    """The place of the right option: a letter, an index from 0, or the option's own text."""
    found = []
    for i, (answer, names) in enumerate(zip(asked.column("answer"), options, strict=True)):
        letters = choice.LETTERS[: len(names)]
        if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(names):
            found.append(answer)
        elif isinstance(answer, str) and answer.strip() in names:
            found.append(names.index(answer.strip()))
        elif isinstance(answer, str) and len(answer.strip()) == 1 and answer.strip().upper() in letters:
            found.append(letters.index(answer.strip().upper()))
        elif isinstance(answer, str) and answer.strip().lower() in [n.lower() for n in names]:
            found.append([n.lower() for n in names].index(answer.strip().lower()))
        else:
            raise DiptychError(
                f"{asked.where(i)}: 'answer' must be a letter of {letters}, an index from 0 or an option, got {answer!r}"
            )
    return found


def _yes_no(text: str, options: Sequence[str]) -> int | None:
    said = pope.parse_yes_no(text)
    return None if said is None else [o.lower() for o in options].index("yes" if said else "no")


def _circular(
    asked: Table,
    ids: Sequence[str],
    credits: Sequence[float | None],
    strict: np.ndarray,
    clusters: Sequence[str],
    options: list[list[str]],
    scored: bool,
    beside: dict[str, Any],
) -> Result:
    """Rotations of a question share the field ``group``, or, as in MMBench's files, their index modulo 1,000,000."""
    if asked.has("group"):
        groups = asked.column("group", "id")
    elif all(re.fullmatch(r"\d+", i) for i in ids):
        groups = [str(int(i) % 1_000_000) for i in ids]
    else:
        raise DiptychError(f"{asked.where(0)}: circular needs the field 'group', the same for every rotation of a question")
    sizes = Counter(groups)
    for i, (group, names) in enumerate(zip(groups, options, strict=True)):
        if sizes[group] != len(names):
            raise DiptychError(f"{asked.where(i)}: question '{group}' has {len(names)} options but {sizes[group]} rotations")
    whole = choice.circular(strict.tolist(), groups)
    cluster = dict(zip(groups, clusters, strict=True))
    best = choice.circular([1.0 if c is None else c for c in credits], groups)
    # options of equal scores tie alike in every rotation; answers that are guessed are guessed anew each time
    chances = [1 / sizes[g] if scored else float(sizes[g]) ** -sizes[g] for g in whole]
    return of_credits(
        "multiple-choice",
        "circular_accuracy",
        list(whole.values()),
        [cluster[g] for g in whole],
        **{**beside, "band": (mean(list(whole.values())), mean(list(best.values()))) if beside["unparsed"] else None},
        chance=mean(chances),
    )


def _mme(
    asked: Table,
    ids: Sequence[str],
    credits: Sequence[float | None],
    strict: np.ndarray,
    images: Sequence[Any],
    beside: dict[str, Any],
) -> list[Result]:
    if any(image is None for image in images):
        raise DiptychError(f"{asked.where(next(i for i, v in enumerate(images) if v is None))}: mme needs the field 'image'")
    tasks = [str(t) for t in asked.column("category", "any", aliases=("subtask",))]
    best = np.array([1.0 if c is None else c for c in credits])
    found, total = [], 0.0
    for task in dict.fromkeys(tasks):
        index = np.array([i for i, t in enumerate(tasks) if t == task])
        names, counts = choice.mme_counts(strict[index].tolist(), chosen(images, index))
        _, hopeful = choice.mme_counts(best[index].tolist(), chosen(images, index))
        lost = sum(credits[i] is None for i in index)
        asked_each = counts[:, 0]
        sums = (float(choice.mme_of_counts(c.sum(0))) for c in (counts, hopeful))
        found.append(
            of_sums(
                "multiple-choice",
                f"{task}: mme_score",
                counts,
                choice.mme_of_counts,
                [str(n) for n in names],
                bounded=False,
                unparsed=lost,
                band=(next(sums), next(sums)) if lost else None,
                chance=100 * (0.5 + float(np.mean(0.5**asked_each))),
            )
        )
        total += found[-1].value or 0.0
    everything = Result(
        "multiple-choice", "mme_score, all subtasks", total, None, None, len(ids), len(set(images)), unparsed=beside["unparsed"]
    )
    return [*found, everything]
