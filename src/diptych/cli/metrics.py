"""``diptych metrics``: numbers with intervals from predictions in files, from Diptych or from elsewhere; no model is needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from diptych.core.errors import DiptychError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Score predictions in files, each number with its 95 % interval (bootstrap over images), n, chance and controls.\n\n"
    "A table of rows may be JSON lines, a JSON list, CSV, TSV or Parquet. `--help` of a verb shows its files.",
)
MODES = ("plain", "circular", "mme")  # of multiple choice
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def captions(
    results: Annotated[Path, typer.Option(help="COCO results.")],
    references: Annotated[Path, typer.Option(help="COCO captions.")],
    images: Annotated[Path | None, typer.Option(help="The folder of the images, for CLIPScore.")] = None,
    model: Annotated[str | None, typer.Option(help="The model for CLIPScore: a run directory or `hf:NAME`.")] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Score only the images that have a result.")] = False,
    java: Annotated[
        bool, typer.Option("--java/--no-java", help="METEOR and SPICE, if Java and pycocoevalcap are installed.")
    ] = True,
    json_: Json = False,
) -> None:
    """BLEU-1..4, ROUGE-L and CIDEr-D as the COCO server computes them; METEOR, SPICE, CLIPScore and RefCLIPScore on demand.

    R.json: `[{"image_id": 1, "caption": "a cat on a mat"}, …]`

    REFS.json: `{"annotations": [{"image_id": 1, "caption": "A cat lies on a mat."}, …], "images": [{"id": 1, "file_name":
    "1.jpg"}, …]}`

    `diptych metrics captions --results R.json --references REFS.json --images photos/ --model runs/clip`
    """
    from diptych.benchmarks.texts import captions as benchmark
    from diptych.benchmarks.texts import clipscore
    from diptych.benchmarks.texts import java as package
    from diptych.cli.results import show_results

    if (images is None) != (model is None):
        raise DiptychError("CLIPScore needs both --images and --model")
    generated, true = benchmark.read_captions(results, references, partial)
    scores, notes = benchmark.score_captions(generated, true), list[str]()
    if java:
        more, notes = package.score_by_java(generated, true)
        scores += more
    if images is not None and model is not None:
        from diptych.inference.load import load

        files = clipscore.image_files(references, images, sorted(generated))
        scores += clipscore.score_by_model(load(model), images, files, generated, true, _progress("images"))
    show_results(scores, json_=json_, notes=notes)


@app.command()
def vqa(
    questions: Annotated[Path, typer.Option(help="VQAv2 questions.")],
    results: Annotated[Path, typer.Option(help="VQAv2 results.")],
    annotations: Annotated[
        Path | None, typer.Option(help="VQAv2 annotations; without them the questions hold the answers (TextVQA, DocVQA).")
    ] = None,
    anls: Annotated[bool, typer.Option("--anls", help="Also ANLS, the metric of DocVQA, ST-VQA and InfographicVQA.")] = False,
    json_: Json = False,
) -> None:
    """VQA accuracy against ten human answers, as its evaluator computes it, with slices by type of answer and of question.

    Q.json: `{"questions": [{"question_id": 7, "image_id": 1, "question": "What is it?"}, …]}`

    A.json: `{"annotations": [{"question_id": 7, "image_id": 1, "answer_type": "other", "question_type": "what is",
    "answers": [{"answer": "cat"}, … ten of them]}, …]}`

    R.json: `[{"question_id": 7, "answer": "cat"}, …]`

    TextVQA and DocVQA: `{"data": [{"question_id": 7, "image_id": "a1", "question": "What is it?", "answers": ["cat", …]}, …]}`

    `diptych metrics vqa --questions Q.json --annotations A.json --results R.json`
    """
    from diptych.benchmarks.answers.vqa import DIFFERS, score_files
    from diptych.cli.results import show_results

    scores = score_files(questions, annotations, results, anls)
    differ = [part["n"] for r in scores for part in r.slices if part["slice"] == DIFFERS]
    why = "where all people agree, the official script (accuracy) compares answers as they are, with case, articles and punctuation"
    show_results(
        scores, json_=json_, notes=[f"{n} of {scores[0].n} answers count otherwise after normalisation: {why}" for n in differ]
    )


@app.command()
def pope(
    questions: Annotated[Path, typer.Option(help="POPE questions.")],
    answers: Annotated[Path, typer.Option(help="The model's answers.")],
    json_: Json = False,
) -> None:
    """Yes/no questions about objects: accuracy, precision, recall, F1, predicted yes-ratio. Answers that are neither yes nor no
    widen the band.

    Q.jsonl: `{"question_id": 1, "image": "1.jpg", "text": "Is there a dog in the image?", "label": "no"}`

    A.jsonl: `{"question_id": 1, "answer": "No, there is not."}`, or in the order of the questions with `question` in place of the
    id

    `diptych metrics pope --questions coco_pope_random.json --answers A.jsonl`
    """
    from diptych.benchmarks.answers.pope import score_files
    from diptych.cli.results import show_results

    show_results(score_files(questions, answers), json_=json_)


@app.command()
def chair(
    captions: Annotated[Path, typer.Option(help="COCO results.")],
    instances: Annotated[Path, typer.Option(help="COCO instances.")],
    references: Annotated[Path | None, typer.Option(help="COCO captions: what they name counts as true.")] = None,
    synonyms: Annotated[
        Path | None, typer.Option(help="One object per line: `person, man, woman`; default: synonyms of COCO's 80 objects.")
    ] = None,
    json_: Json = False,
) -> None:
    """Objects that captions name and images do not show: CHAIR_i, CHAIR_s, with recall and length, which affect them.

    C.json: `[{"image_id": 1, "caption": "a cat and a dog"}, …]`

    I.json: `{"images": [{"id": 1}], "annotations": [{"image_id": 1, "category_id": 17}, …], "categories": [{"id": 17, "name":
    "cat"}, …]}`

    `diptych metrics chair --captions C.json --instances instances_val2014.json --references captions_val2014.json`
    """
    from diptych.benchmarks.texts.chair import score_files
    from diptych.cli.results import show_results

    show_results(score_files(captions, instances, references, synonyms), json_=json_)


@app.command()
def pairs(
    scores: Annotated[Path, typer.Option(help="One row per item.")],
    json_: Json = False,
) -> None:
    """Positive against negatives (ARO, SugarCrepe, CREPE, VL-CheckList), or 2×2 (Winoground). Ties are shared.

    S.jsonl: `{"id": 1, "image": "1.jpg", "positive": 0.31, "negative": 0.29, "split": "add_obj"}`; several wrong ones:
    `"negatives": [0.2, 0.1]`. With `caption` and `negative_caption` the control "the shorter one is right" is shown.

    Winoground: `{"id": 0, "c0_i0": 0.3, "c0_i1": 0.2, "c1_i0": 0.1, "c1_i1": 0.4, "tag": "Object"}`

    `diptych metrics pairs --scores S.jsonl`
    """
    from diptych.benchmarks.matching.pairs import score_file
    from diptych.cli.results import show_results

    show_results(score_file(scores), json_=json_)


@app.command()
def retrieval(
    similarity: Annotated[Path, typer.Option(help="A matrix, images down and captions across.")],
    positives: Annotated[Path, typer.Option(help="For each row the columns that are right.")],
    ks: Annotated[str, typer.Option("--k", help="Comma-separated.")] = "1,5,10",
    json_: Json = False,
) -> None:
    """R@K and median rank in both directions, from a matrix that may be larger than the memory.

    S.npy: numbers [images, captions], `numpy.save("S.npy", scores)`. P.json: `[[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], …]`

    `diptych metrics retrieval --similarity S.npy --positives P.json`
    """
    from diptych.benchmarks.matching.retrieval import score_file
    from diptych.cli.results import show_results

    results = score_file(similarity, positives, _numbers(ks, int), _progress("rows"))
    both = any(r.metric.startswith("column→row") for r in results)
    notes = () if both else ("column→row is not scored: some columns of the matrix are right for no row, so they have no rank",)
    show_results(results, json_=json_, notes=notes)


@app.command()
def zeroshot(
    scores: Annotated[Path, typer.Option(help="A matrix, images down and classes across.")],
    labels: Annotated[Path, typer.Option(help="The right class of each row.")],
    classes: Annotated[Path | None, typer.Option(help="The names of the columns.")] = None,
    images: Annotated[Path | None, typer.Option(help="The image of each row, if several rows are of one image.")] = None,
    json_: Json = False,
) -> None:
    """Top-1, top-5 (not below six classes) and mean per-class recall of classification by names.

    S.npy: numbers [N, C]. L.json: `[0, 2, 1, …]`, or names, `["cat", "bus", …]`, with C.json: `["cat", "dog", "bus"]`

    `diptych metrics zeroshot --scores S.npy --labels L.json --classes C.json`
    """
    from diptych.benchmarks.matching.zeroshot import score_file
    from diptych.cli.results import show_results

    show_results(score_file(scores, labels, classes, images), json_=json_)


@app.command("multiple-choice")
def multiple_choice(
    questions: Annotated[Path, typer.Option(help="One row per question; MMBench's tsv as it is.")],
    answers: Annotated[Path, typer.Option(help="The model's answers, or its scores of the options.")],
    mode: Annotated[
        str, typer.Option(help="`plain`, `circular` (every rotation must be right) or `mme` (accuracy + accuracy⁺, out of 200).")
    ] = "plain",
    key: Annotated[
        str,
        typer.Option(help="What the questions' `answer` is: `letter`, `text`, `index` (from 0); `auto`: what fits all rows."),
    ] = "auto",
    json_: Json = False,
) -> None:
    """One right option among several. An answer that names none, or several, is not guessed at: it widens the band.

    Q.jsonl: `{"id": 1, "image": "1.jpg", "question": "What is it?", "options": ["cat", "dog"], "answer": "A", "category": "what"}`.
    Rotations of a question share `group`; in MMBench's files, the index modulo 1,000,000.
    For `mme`: `image`, `category` (the subtask) and `answer` yes or no.

    A.jsonl: `{"id": 1, "answer": "A. cat"}` or `{"id": 1, "scores": [0.7, 0.1]}`

    `diptych metrics multiple-choice --questions mmbench_dev.tsv --answers A.jsonl --mode circular`
    """
    from diptych.benchmarks.answers import choices, mme
    from diptych.cli.results import show_results
    from diptych.core.errors import nearest

    if mode not in MODES:
        raise DiptychError(f"--mode {mode}: no such mode{nearest(mode, MODES)}")
    if mode == "mme":
        results = mme.score_files(questions, answers)
    else:
        results = choices.score_files(questions, answers, mode == "circular", key)
    show_results(results, json_=json_)


@app.command()
def selective(
    records: Annotated[Path, typer.Option(help="One row per answer.")],
    validation: Annotated[Path | None, typer.Option(help="The same for other items, on which the threshold is chosen.")] = None,
    risks: Annotated[str, typer.Option(help="Comma-separated, for the largest coverage at a risk.")] = "0.05,0.1,0.2",
    costs: Annotated[str, typer.Option(help="Comma-separated, the cost of a wrong answer; needs --validation.")] = "1,10,100",
    json_: Json = False,
) -> None:
    """Answering only when sure: area under risk-coverage, coverage at a risk, effective reliability.

    R.jsonl: `{"id": 1, "image": "1.jpg", "confidence": 0.83, "correct": 1}`; `correct`: a credit in [0, 1]

    `diptych metrics selective --records R.jsonl --validation V.jsonl`
    """
    from diptych.benchmarks.answers.confidence import selective_file
    from diptych.cli.results import show_results

    show_results(selective_file(records, validation, _numbers(risks, float), _numbers(costs, float)), json_=json_)


@app.command()
def calibration(
    records: Annotated[Path, typer.Option(help="One row per answer.")],
    bins: Annotated[int, typer.Option(min=1, help="The number of bins, of equal width.")] = 15,
    json_: Json = False,
) -> None:
    """Is 80 % sure right in 80 % of the cases? Expected calibration error, Brier score, and the bins of the diagram.

    R.jsonl: `{"id": 1, "image": "1.jpg", "confidence": 0.83, "correct": 1}`; `confidence`: a probability

    `diptych metrics calibration --records R.jsonl`
    """
    from diptych.benchmarks.answers.confidence import calibration_file
    from diptych.cli.results import show_results

    results, diagram = calibration_file(records, bins)
    show_results(results, json_=json_, bins=[b for b in diagram if b.n])


@app.command()
def memorization(
    target: Annotated[Path, typer.Option(help="Embeddings of the model that saw the samples.")],
    reference: Annotated[Path, typer.Option(help="Embeddings of a model that did not.")],
    objects: Annotated[Path, typer.Option(help="The labels of samples and public images.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Nearest public images of a caption.")] = 10,
    json_: Json = False,
) -> None:
    """Déjà vu: what a model knows of a training image beyond its caption. Gaps above 0 show memorisation.

    T.npz and R.npz: `numpy.savez("T.npz", text=captions_of_samples, public=images_of_a_disjoint_set)`, embedded by each model.
    O.json: `{"samples": [["cat", "sofa"], …], "public": [["dog"], …]}`

    `diptych metrics memorization --target T.npz --reference R.npz --objects O.json`
    """
    from diptych.benchmarks.probes.memorization import score_files
    from diptych.cli.results import show_results

    show_results(score_files(target, reference, objects, k), json_=json_)


@app.command()
def frequency(
    counts: Annotated[Path, typer.Option(help="How often each concept is in the training data.")],
    results: Annotated[Path, typer.Option(help="One row per test item, or one per concept.")],
    per_decade: Annotated[int, typer.Option(min=1, help="Bins per factor of ten in the count.")] = 2,
    json_: Json = False,
) -> None:
    """Concept frequency against accuracy: raw, rank and log-binned correlation, and what ten times the data adds.

    C.json: `{"cat": 12000, "okapi": 7, …}`. R.jsonl: `{"concept": "okapi", "correct": 0}`

    `diptych metrics frequency --counts C.json --results R.jsonl`
    """
    from diptych.benchmarks.probes.frequency import score_files
    from diptych.cli.results import show_results

    scores, bins = score_files(counts, results, per_decade)
    show_results(scores, json_=json_, bins=bins)


@app.command()
def bias(
    scores: Annotated[Path, typer.Option(help="One row per score.")],
    k: Annotated[int, typer.Option("-k", min=1, help="For skew: how many of the top items.")] = 10,
    json_: Json = False,
) -> None:
    """Three probes, chosen by the fields of the rows.

    Skew of what a query retrieves: `{"query": "a photo of a doctor", "item": "1.jpg", "group": "a", "score": 0.3}`

    Association of groups with one of two attributes: `{"image": "1.jpg", "group": "a", "attribute": "career", "text": "office",
    "score": 0.2}`

    Contrast sets, which differ only in the group: `{"set": 1, "group": "a", "query": "a kind person", "score": 0.2}`

    `diptych metrics bias --scores S.jsonl -k 100`
    """
    from diptych.benchmarks.probes.bias_table import score_file
    from diptych.cli.results import show_results

    show_results(score_file(scores, k), json_=json_)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="A")],
    second: Annotated[Path, typer.Argument(metavar="B")],
    metric: Annotated[str | None, typer.Option(help="Only this one.")] = None,
    json_: Json = False,
) -> None:
    """Is A better than B on the same items? Paired permutation test, flipped by image, with Holm's correction over the metrics.

    A.jsonl, B.jsonl: `{"item": "1", "cluster": "1.jpg", "correct": {"accuracy": 1}}`, as `diptych evaluate` writes them, or
    `"correct": 1`

    `diptych metrics compare runs/clip/evaluation/records/retrieval.jsonl runs/siglip/evaluation/records/retrieval.jsonl`
    """
    from diptych.benchmarks.compare import compare_records
    from diptych.cli.results import show_rows

    show_rows("tests", compare_records(first, second, metric), json_)


def _numbers(text: str, kind: type) -> list[Any]:
    try:
        numbers = [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = []
    if not numbers or any(v <= 0 for v in numbers):
        raise DiptychError(f"expected numbers above 0 with commas between, got '{text}'")
    return numbers


def _progress(what: str) -> Callable[[int, int], None]:
    """A function that reports progress on stderr, for work that takes more than a few seconds."""
    import sys
    import time

    start = last = time.monotonic()

    def report(done: int, of: int) -> None:
        """Prints a count every five seconds, after the first three."""
        nonlocal last
        now = time.monotonic()
        if now - start > 3 and (now - last > 5 or done == of):
            last = now
            print(f"{done:,}/{of:,} {what}", file=sys.stderr, flush=True)

    return report
