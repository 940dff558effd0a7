"""Scores: positive against negatives, 2×2 pairs, retrieval, zero-shot classes, and confidences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from diptych.benchmarks.inputs import Table, read_json, read_npy, read_rows
from diptych.benchmarks.metrics import calibration, pairs, retrieval, selective, zeroshot
from diptych.benchmarks.predictions.common import chosen, named_columns, of_credits, of_sums, slices
from diptych.benchmarks.records import Result
from diptych.benchmarks.statistics import function_interval, mean
from diptych.core.errors import DiptychError

WINOGROUND = ("c0_i0", "c0_i1", "c1_i0", "c1_i1")
MOST_WORK = 40_000_000  # items × resamples of a metric that must be sorted anew each time


def judge_pairs(path: Path) -> list[Result]:
    """Rows with ``positive`` and ``negative`` (or ``negatives``), or Winoground's four scores."""
    table = read_rows(path)
    ids = table.unique("id", aliases=("item",)) if table.has("id") or table.has("item") else [str(i) for i in range(len(table))]
    clusters = [str(c) for c in table.column("image", "id", aliases=("image_id", "filename", "cluster"), default=None)]
    clusters = [each if cluster == "None" else cluster for cluster, each in zip(clusters, ids, strict=True)]
    named = named_columns(table)
    if table.has(WINOGROUND[0]):
        return _winoground(table, ids, named)
    positive = np.array(table.column("positive", "score"))
    many = table.has("negatives")
    lists = table.column("negatives", "scores") if many else None
    if lists is not None:
        empty = [i for i, row in enumerate(lists) if not row]
        if empty:
            raise DiptychError(f"{table.where(empty[0])}: 'negatives' is empty")
        sizes = np.array([len(row) for row in lists])
        negatives = np.full((len(lists), sizes.max()), np.nan)
        negatives[np.arange(sizes.max()) < sizes[:, None]] = np.concatenate([np.asarray(row, dtype=np.float64) for row in lists])
    else:
        negatives, sizes = np.array(table.column("negative", "score"))[:, None], np.ones(len(table), dtype=np.int64)
    credits, tied = pairs.positive_credit(positive, negatives, sizes)
    nans = int((~np.isfinite(positive)).sum() + (~np.isfinite(negatives)).sum() - (negatives.shape[1] * len(sizes) - sizes.sum()))
    chance = 1 / (1 + sizes)
    controls = _length_controls(table, sizes)

    def judge(index: np.ndarray) -> Result:
        return of_credits("pairs", "accuracy", credits[index], chosen(clusters, index))

    found = replace(
        judge(np.arange(len(credits))),
        chance=mean(chance),
        controls=controls,
        ties=int(tied.sum()),
        nans=nans,
        slices=slices(named, judge),
    )
    return [found, *_macro(named, credits, chance, clusters, found)]


def _length_controls(table: Table, sizes: np.ndarray) -> dict[str, float | None]:
    """What "the shorter (the longer) caption is right" would score, where the file has the captions."""
    if not table.has("caption"):
        return {}
    own = np.array([len(text) for text in table.column("caption", "text")], dtype=np.float64)
    if table.has("negative_captions"):
        others = table.column("negative_captions", "texts")
    else:
        others = [[text] for text in table.column("negative_caption", "text")]
    lengths = np.full((len(others), int(sizes.max())), np.nan)
    for i, texts in enumerate(others):
        if len(texts) != sizes[i]:
            raise DiptychError(f"{table.where(i)}: {len(texts)} negative captions for {sizes[i]} negative scores")
        lengths[i, : len(texts)] = [len(t) for t in texts]
    return {
        "shortest": mean(pairs.positive_credit(-own, -lengths, sizes)[0]),
        "longest": mean(pairs.positive_credit(own, lengths, sizes)[0]),
    }


def _macro(
    named: dict[str, list[Any]], credits: np.ndarray, chance: np.ndarray, clusters: Sequence[str], whole: Result
) -> list[Result]:
    """The mean over the values of a column (relations, attributes, splits), each counting alike."""
    found = []
    for name, values in named.items():
        _, which = np.unique([str(v) for v in values], return_inverse=True)
        kinds = int(which.max()) + 1
        if kinds < 2:
            continue
        counts = zeroshot.class_counts(credits, which, kinds)
        at_chance = float(zeroshot.per_class_recall(zeroshot.class_counts(chance, which, kinds).sum(0)))
        found.append(
            of_sums(
                "pairs",
                f"accuracy, macro over {name}",
                counts,
                zeroshot.per_class_recall,
                clusters,
                chance=at_chance,
                ties=whole.ties,
                nans=whole.nans,
            )
        )
    return found


def _winoground(table: Table, ids: Sequence[str], named: dict[str, list[Any]]) -> list[Result]:
    """text, image, group: ``c1_i0`` is the score of caption 1 with image 0."""
    values = np.stack([np.array(table.column(name, "score")) for name in WINOGROUND], axis=1)
    scores = values.reshape(-1, 2, 2).transpose(0, 2, 1)  # images down, captions across
    credits = {name: np.zeros(len(ids)) for name in ("text", "image", "group")}
    for i, block in enumerate(scores):
        for name, credit in pairs.winoground(block).items():
            credits[name][i] = credit
    chance = pairs.chance(2)
    chances = {"text": chance["text"] ** 2, "image": chance["image"] ** 2, "group": chance["group"]}

    def judge(name: str) -> Result:
        def part(index: np.ndarray) -> Result:
            return of_credits("pairs", name, credits[name][index], chosen(ids, index))

        return replace(
            part(np.arange(len(ids))),
            chance=chances[name],
            ties=int(((credits[name] > 0) & (credits[name] < 1)).sum()),
            nans=int((~np.isfinite(values)).sum()),
            slices=slices(named, part),
        )

    return [judge(name) for name in credits]


def judge_retrieval(
    similarity: Path, positives: Path, ks: Sequence[int] = (1, 5, 10), progress: Callable[[int, int], None] | None = None
) -> list[Result]:
    """R@K and the median rank in both directions; ``positives``: a JSON list, for each row the columns that are right."""
    scores = read_npy(similarity, 2)
    given = read_json(positives)
    if isinstance(given, dict):
        missing = [i for i in range(len(scores)) if str(i) not in given]
        if missing or len(given) != len(scores):
            raise DiptychError(f"{positives}: expected the keys 0 to {len(scores) - 1}, one a row of {similarity}")
        given = [given[str(i)] for i in range(len(scores))]
    if not isinstance(given, list):
        raise DiptychError(f"{positives}: expected a list, for each row of {similarity} the columns that are right")
    listed = [[each] if isinstance(each, int) else each for each in given]
    for i, each in enumerate(listed):
        if not isinstance(each, list) or not all(isinstance(j, int) and not isinstance(j, bool) for j in each):
            raise DiptychError(f"{positives}, [{i}]: expected a list of column numbers, got {each!r:.60}")
    try:
        forward, backward = retrieval.standings(scores, listed, progress)
    except ValueError as error:
        raise DiptychError(f"{positives}: {error}") from None
    rows, columns = scores.shape
    owner = np.zeros(columns, dtype=np.int64)  # captions of one image are drawn together
    for i, mine in enumerate(listed):
        owner[mine] = i
    sizes = np.bincount(np.concatenate([np.asarray(m) for m in listed]), minlength=columns)
    ways = [("row→column", forward, np.arange(rows), columns, np.array([len(m) for m in listed]))]
    if backward is not None:
        ways.append(("column→row", backward, owner, rows, sizes))
    found = []
    for name, at, clusters, candidates, right in ways:
        for k in ks:
            chance = retrieval.chance(k, candidates, right)
            recall = of_credits("retrieval", f"{name} R@{k}", at.credit(k), clusters.tolist(), chance=chance)
            found.append(replace(recall, ties=at.ties(k), nans=at.nans))
        ranks = at.rank()
        resamples = int(np.clip(MOST_WORK // len(ranks), 200, 2000))
        median = function_interval(partial(_median, ranks), clusters.tolist(), resamples=resamples)
        found.append(
            Result(
                "retrieval",
                f"{name} median rank",
                median.value,
                max(1.0, median.low),
                median.high,
                len(ranks),
                len(set(clusters.tolist())),
                higher_is_better=False,
                nans=at.nans,
            )
        )
    return found


def _median(ranks: np.ndarray, index: np.ndarray) -> float:
    return float(np.median(ranks[index]))


def judge_zeroshot(scores: Path, labels: Path, classes: Path | None = None, images: Path | None = None) -> list[Result]:
    """Top-1, top-5 and mean per-class recall of scores [N, C]; labels: a JSON list of class numbers, or of names with ``classes``."""
    matrix = read_npy(scores, 2)
    given, names = read_json(labels), _names(classes) if classes else None
    if not isinstance(given, list) or len(given) != len(matrix):
        got = f"{len(given)} labels" if isinstance(given, list) else type(given).__name__
        raise DiptychError(f"{labels}: expected a list of {len(matrix)} labels, one a row of {scores}, got {got}")
    if names is not None and len(names) != matrix.shape[1]:
        raise DiptychError(f"{classes}: {len(names)} classes for the {matrix.shape[1]} columns of {scores}")
    which = []
    for i, label in enumerate(given):
        if isinstance(label, str) and names is not None and label in names:
            label = names.index(label)
        if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < matrix.shape[1]:
            remedy = "" if names is not None or not isinstance(label, str) else "; names of classes need --classes"
            raise DiptychError(f"{labels}, [{i}]: {label!r:.60} is no class of {matrix.shape[1]}{remedy}")
        which.append(label)
    clusters = _names(images, unique=False) if images else [str(i) for i in range(len(which))]
    if len(clusters) != len(which):
        raise DiptychError(f"{images}: {len(clusters)} images for {len(which)} labels")
    truth = np.array(which)
    credits = zeroshot.topk_credits(matrix, truth)
    constant = float(np.bincount(truth).max() / len(truth))
    nans = sum(int((~np.isfinite(matrix[i : i + 4096])).sum()) for i in range(0, len(matrix), 4096))
    found: list[Result] = []
    for name, credit in credits.items():
        k = int(name[3:])
        ties = int(((credit > 0) & (credit < 1)).sum())
        controls = {"constant": constant} if k == 1 else {}
        chance = k / matrix.shape[1]
        found.append(of_credits("zeroshot", name, credit, clusters, chance=chance, ties=ties, nans=nans, controls=controls))
    counts = zeroshot.class_counts(credits["top1"], truth, matrix.shape[1])
    recall = of_sums("zeroshot", "per_class_recall", counts, zeroshot.per_class_recall, clusters, chance=1 / matrix.shape[1])
    return [*found, replace(recall, ties=found[0].ties, nans=nans)]


def _names(path: Path, unique: bool = True) -> list[str]:
    found = read_json(path)
    if not isinstance(found, list) or not all(isinstance(n, str | int) for n in found):
        raise DiptychError(f"{path}: expected a list of names")
    names = [str(n) for n in found]
    if unique and len(set(names)) != len(names):
        raise DiptychError(f"{path}: '{next(n for n in names if names.count(n) > 1)}' twice")
    return names


def confidences(path: Path) -> tuple[np.ndarray, np.ndarray, list[str], int, Table]:
    """confidence and credit [N], clusters, the number of confidences that are not a number."""
    table = read_rows(path)
    ids = table.unique("id", aliases=("item", "question_id"))
    images = table.column("image", "id", aliases=("image_id", "cluster"), default=None)
    confidence = np.array(table.column("confidence", "score"))
    credit = np.array(table.column("correct", "truth", aliases=("credit",)))
    clusters = [i if image is None else image for image, i in zip(images, ids, strict=True)]
    return confidence, credit, clusters, int(np.isnan(confidence).sum()), table


def judge_selective(
    records: Path, validation: Path | None = None, risks: Sequence[float] = (0.05, 0.1, 0.2), costs: Sequence[float] = (1, 10, 100)
) -> list[Result]:
    """Area under risk-coverage, C@r and, with a validation split to choose the threshold on, Φ_c."""
    confidence, credit, clusters, nans, _ = confidences(records)
    distinct, n = len(set(clusters)), len(credit)
    resamples = int(np.clip(MOST_WORK // n, 200, 2000))

    def resampled(name: str, function: Callable[..., float], higher: bool, **beside: Any) -> Result:
        at = function_interval(lambda index: function(confidence[index], credit[index]), clusters, share=True, resamples=resamples)
        return Result("selective", name, at.value, at.low, at.high, n, distinct, higher_is_better=higher, nans=nans, **beside)

    error = 1 - mean(credit)
    found = [replace(of_credits("selective", "accuracy, all answered", credit, clusters), nans=nans)]
    best = {"oracle": selective.area_under_risk(credit, credit), "constant": error}
    found.append(resampled("area under risk", selective.area_under_risk, False, controls=best))
    for r in risks:
        found.append(resampled(f"coverage at risk {r:g}", lambda c, right, r=r: selective.coverage_at_risk(c, right, r), True))
    if validation is None:
        return found
    chosen_on, chosen_credit, others, _, _ = confidences(validation)
    shared = set(clusters) & set(others)
    if shared:
        raise DiptychError(
            f"{validation}: {len(shared)} images or ids are also in {records}, the first '{sorted(shared)[0]}'; a threshold must be chosen on others"
        )
    for cost in costs:
        threshold = selective.best_threshold(chosen_on, chosen_credit, cost)
        values = selective.effective_reliability(confidence, credit, threshold, cost)
        always = mean(selective.effective_reliability(confidence, credit, -np.inf, cost))
        controls = {"never answering": 0.0, "always answering": always}
        found.append(
            of_credits("selective", f"reliability at cost {cost:g}", values, clusters, bounded=False, nans=nans, controls=controls)
        )
    return found


def judge_calibration(records: Path, bins: int = calibration.BINS) -> tuple[list[Result], list[calibration.Bin]]:
    """ECE, Brier score, and the bins of the reliability diagram."""
    confidence, credit, clusters, _, table = confidences(records)
    bad = np.flatnonzero(~((confidence >= 0) & (confidence <= 1)))
    if len(bad):
        raise DiptychError(f"{table.where(int(bad[0]))}: 'confidence' must be a probability in [0, 1], got {confidence[bad[0]]:g}")
    rate = mean(credit)
    usual = {"constant": float(np.mean((rate - credit) ** 2))}  # always saying the rate of right answers
    down: dict[str, Any] = {"higher_is_better": False}
    results = [
        of_credits("calibration", "accuracy", credit, clusters),
        of_credits("calibration", "mean confidence", confidence, clusters),
        of_sums("calibration", "ece", calibration.bin_sums(confidence, credit, bins), calibration.ece_of_sums, clusters, **down),
        of_credits("calibration", "brier", calibration.brier_items(confidence, credit), clusters, **down, controls=usual),
    ]
    return results, calibration.reliability(confidence, credit, bins)
