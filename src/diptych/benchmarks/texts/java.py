"""METEOR and SPICE of captions: by the package pycocoevalcap, where Java, the package and its models are installed."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from diptych.benchmarks.records import Result
from diptych.benchmarks.results import of_credits


def score_by_java(generated: dict[str, str], references: dict[str, list[str]]) -> tuple[list[Result], list[str]]:
    """The results, and a note for each metric that was not computed and why."""
    missing = [] if shutil.which("java") else ["Java (apt-get install default-jre-headless)"]
    package = importlib.util.find_spec("pycocoevalcap")
    if package is None:
        missing.append("pycocoevalcap (pip install pycocoevalcap)")
    if missing or package is None:
        return [], [f"{name}: not computed, needs {' and '.join(missing)}" for name in ("METEOR", "SPICE")]
    notes, scorers = [], ["meteor"]
    models = Path(next(iter(package.submodule_search_locations or [""]))) / "spice" / "lib"
    if list(models.glob("stanford-corenlp-*-models.jar")):
        scorers.append("spice")
    else:  # the package would download 400 MB without asking
        fetch = "python -c 'from pycocoevalcap.spice.spice import Spice; Spice()' fetches it"
        notes.append(f"SPICE: not computed, needs Stanford CoreNLP in {models} ({fetch})")
    keys, results = sorted(generated), []
    for name in scorers:
        try:
            # the package's Java programs write to our standard streams
            with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet), _redirected(2, quiet.fileno()):
                value, credits = _by_package(name, keys, generated, references)
        except Exception as error:  # any error of Java or its models
            notes.append(f"{name.upper()}: not computed, {type(error).__name__}: {str(error)[:200]}")
        else:
            at = of_credits("captions", name, np.nan_to_num(credits), keys)
            # METEOR of a corpus is not the mean of its captions: these give the width of the interval, the corpus its centre
            low, high = (None if end is None else end + value - (at.value or 0.0) for end in (at.low, at.high))
            results.append(replace(at, value=value, low=low, high=high))
    return results, notes


def _by_package(
    name: str, keys: Sequence[str], generated: dict[str, str], references: dict[str, list[str]]
) -> tuple[float, list[float]]:
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    made = PTBTokenizer().tokenize({k: [{"caption": generated[k]}] for k in keys})
    true = PTBTokenizer().tokenize({k: [{"caption": c} for c in references[k]] for k in keys})
    if name == "meteor":
        value, scores = Meteor().compute_score(true, made)
        return float(value), [float(v) for v in scores]
    from pycocoevalcap.spice.spice import Spice

    value, items = Spice().compute_score(true, made)
    return float(value), [item["All"]["f"] for item in items]


@contextlib.contextmanager
def _redirected(descriptor: int, target: int) -> Iterator[None]:
    """Meanwhile, what child processes write to ``descriptor`` goes to ``target``."""
    kept = os.dup(descriptor)
    try:
        os.dup2(target, descriptor)
        yield
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)
