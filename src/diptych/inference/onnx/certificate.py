"""Whether an ONNX export computes what the model does: batches, lengths, sizes, retrieval and time, against torch.

Shapes: N items, E width.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from diptych.core.arrays import unit_rows
from diptych.core.capabilities import Image, Model
from diptych.core.errors import DiptychError
from diptych.core.files import write_json
from diptych.data.text import normalise
from diptych.inference.onnx.files import CERTIFICATE, FORMAT, MANIFEST, digest, hashes, read_manifest
from diptych.inference.onnx.latency import Latency, latencies, versions
from diptych.inference.onnx.probes import Probe, picture_probes, text_probes
from diptych.inference.onnx.runtime import OnnxModel, Runtime
from diptych.inference.onnx.towers import exact


class Difference(Protocol):
    """Mean of a − b with its interval, as ``benchmarks.statistics.PairedTest`` has it."""

    difference: float
    low: float
    high: float


Paired = Callable[[np.ndarray, np.ndarray, Sequence[Hashable]], Difference]


@dataclass(frozen=True)
class Bounds:
    """Limits of an export against torch in fp32. Every group of probes must keep them, not only all together.

    largest: difference of one entry of two unit vectors; least, mean: cosine of a vector with torch's; together: difference of one
    entry between an item alone and in a batch; recall: how much lower recall may be before an interval that excludes 0 refuses.
    """

    largest: float
    least: float
    mean: float
    together: float
    recall: float


BOUNDS = {
    "fp32": Bounds(largest=1e-4, least=0.999999, mean=0.9999999, together=1e-5, recall=0.0),
    "fp16": Bounds(largest=0.02, least=0.999, mean=0.9998, together=0.005, recall=0.005),
    "int8": Bounds(largest=0.35, least=0.80, mean=0.95, together=0.01, recall=0.02),
}


@dataclass(frozen=True)
class Row:
    """A group of probes: n vectors against torch's. error: what went wrong, if nothing could be compared."""

    side: str
    what: str
    n: int
    largest: float = 0.0
    mean: float = 0.0  # difference of an entry
    cosine_least: float = 1.0
    cosine_mean: float = 1.0
    error: str = ""


@dataclass(frozen=True)
class Recall:
    """Recall at k of both, and the difference export − torch with its interval."""

    direction: str
    k: int
    n: int
    torch: float
    onnx: float
    difference: float
    low: float
    high: float


@dataclass
class Certificate:
    """What was measured. failures: bounds that were not kept; none: passed."""

    precision: str
    runtime: str
    rows: list[Row] = field(default_factory=list)
    recall: list[Recall] = field(default_factory=list)
    latency: list[Latency] = field(default_factory=list)
    together: dict[str, float] = field(default_factory=dict)
    as_used: dict[str, float] = field(default_factory=dict)  # torch as the model runs it, against torch in fp32
    failures: list[str] = field(default_factory=list)
    data: str = ""
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every bound was kept."""
        return not self.failures

    def worst(self, side: str) -> Row:
        """The largest differences of a side over all its groups."""
        rows = [r for r in self.rows if r.side == side and not r.error] or [Row(side, "nothing", 0)]
        n, mean = sum(r.n for r in rows), sum(r.mean * r.n for r in rows)
        cosine = sum(r.cosine_mean * r.n for r in rows)
        largest, least = max(r.largest for r in rows), min(r.cosine_least for r in rows)
        return Row(side, "all", n, largest, mean / max(n, 1), least, cosine / max(n, 1))

    def save(self, folder: Path) -> None:
        """Writes certificate.json, which names the manifest and all files by their hashes."""
        data = {
            "format": FORMAT,
            "passed": self.passed,
            "failures": self.failures,
            "precision": self.precision,
            "runtime": self.runtime,
            "bounds": asdict(BOUNDS[self.precision]),
            "data": self.data,
            **self.about,
            "manifest": digest(folder / MANIFEST),
            "files": hashes(folder),
            "worst": [asdict(self.worst(side)) for side in ("image", "text")],
            "alone_and_in_a_batch": self.together,
            "torch_as_used": self.as_used,
            "recall": [asdict(r) for r in self.recall],
            "latency": [asdict(t) for t in self.latency],
            "groups": [asdict(r) for r in self.rows],
        }
        write_json(folder / CERTIFICATE, data)


class Refused(DiptychError):  # noqa: N818 - what happened, as BrokenItem is
    """An export that does not keep its bounds, with its certificate."""

    def __init__(self, message: str, certificate: Certificate):
        super().__init__(message)
        self.certificate = certificate


def certify(
    model: Model,
    folder: Path,
    paired: Paired,
    images: Sequence[Image] = (),
    captions: Sequence[str] = (),
    data: str = "",
    runtime: Runtime = "onnxruntime",
    threads: int = 0,
    seconds: float = 2.0,
) -> Certificate:
    """Compares a directory's graphs with the model that they were made of.

    paired: the interval of a difference (``benchmarks.statistics.paired_test``). images, captions: aligned, for probes and recall
    (recall only with captions). seconds: for each latency; 0: none are measured.
    """
    precision = read_manifest(folder)["precision"]
    made = OnnxModel(folder, runtime, threads, checked=False)
    result = Certificate(precision, runtime, data=data, about=versions(made))
    bounds = BOUNDS[precision]
    words = sorted({word for caption in captions for word in caption.split()})
    with exact(model):
        for side, probes in (("image", picture_probes(made, images)), ("text", text_probes(made, words, captions))):
            result.rows += [_row(side, probe, _both(side, model), _both(side, made)) for probe in probes]
        result.together = {side: value for side in ("image", "text") if (value := _together(side, made, images)) is not None}
        if len(captions) > 1:
            result.recall = list(_recalls(model, made, images, captions, paired))
        reference = _reference(model, images, captions)
    now = _reference(model, images, captions)
    result.as_used = {side: _apart(vectors, now[side]) for side, vectors in reference.items()}
    result.failures = list(_failures(result, bounds))
    if seconds and result.passed:
        result.latency = latencies(model, made, images, captions, seconds)
    return result


def _both(side: str, model: Any) -> Callable[[Sequence[Any]], np.ndarray]:
    return getattr(model, f"embed_{side}")  # type: ignore[no-any-return]


def _reference(model: Any, images: Sequence[Image], captions: Sequence[str]) -> dict[str, np.ndarray]:
    given: dict[str, list[Any]] = {"image": list(images[:32]), "text": list(captions[:32])}
    return {side: _both(side, model)(items) for side, items in given.items() if items}


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max(initial=0.0))


def _row(side: str, probe: Probe, torch: Callable[[Any], np.ndarray], onnx: Callable[[Any], np.ndarray]) -> Row:
    try:
        found = np.asarray(onnx(probe.items))
    except DiptychError:
        raise
    except Exception as error:  # a runtime's own exceptions have no common class
        return Row(side, probe.what, len(probe.items), error=" ".join(str(error).split())[:300])
    wanted = np.asarray(torch(probe.items))
    if found.shape != wanted.shape:
        return Row(side, probe.what, len(probe.items), error=f"vectors {list(found.shape)}, expected {list(wanted.shape)}")
    if not np.isfinite(found).all():
        return Row(side, probe.what, len(probe.items), error="vectors that are not finite")
    apart, cosines = np.abs(found - wanted), (unit_rows(found, np.float64) * unit_rows(wanted, np.float64)).sum(1)
    largest, mean, least = float(apart.max()), float(apart.mean()), float(cosines.min())
    return Row(side, probe.what, len(wanted), largest, mean, least, float(cosines.mean()))


def _together(side: str, made: OnnxModel, images: Sequence[Image]) -> float | None:
    """The largest difference between the vectors of items alone and in one batch; None: it could not be computed, which the rows
    say.
    """
    probe = next(p for p in (picture_probes(made, images) if side == "image" else text_probes(made, (), ())) if p.together)
    embed = _both(side, made)
    try:
        return _apart(embed(probe.items), np.concatenate([embed([item]) for item in probe.items]))
    except Exception:
        return None


def _recalls(model: Model, made: OnnxModel, images: Sequence[Image], captions: Sequence[str], paired: Paired) -> Iterator[Recall]:
    """Recall at 1 and 10 in both directions. A picture with the same caption, apart from case and the full stop, is as good."""
    same = [normalise(caption) for caption in captions]
    right = np.array([[a == b for b in same] for a in same])
    try:
        scores = [m.embed_image(list(images)) @ m.embed_text(list(captions)).T for m in (model, made)]
    except DiptychError:
        raise
    except Exception:  # the rows say what is wrong
        return
    for direction in ("text to image", "image to text"):
        for k in (1, 10):
            if k >= len(captions):
                continue
            both = [_hits(s.T if direction == "text to image" else s, right, k) for s in scores]
            test = paired(both[1], both[0], list(range(len(captions))))
            yield Recall(
                direction, k, len(captions), float(both[0].mean()), float(both[1].mean()), test.difference, test.low, test.high
            )


def _hits(scores: np.ndarray, right: np.ndarray, k: int) -> np.ndarray:
    """Whether each row has a right column among its k best, float [N]."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.asarray(np.take_along_axis(right, best, 1).any(1), dtype=np.float64)


def _failures(found: Certificate, bounds: Bounds) -> Iterator[str]:
    for row in found.rows:
        where = f"{row.side}, {row.what}"
        if row.error:
            yield f"{where}: {row.error}"
        elif row.largest > bounds.largest:
            yield f"{where}: an entry differs by {row.largest:.2g}, at most {bounds.largest:g} is allowed"
        elif row.cosine_least < bounds.least:
            yield f"{where}: a cosine of {row.cosine_least:.7g} with torch's vector, at least {bounds.least:g} is needed"
        elif row.cosine_mean < bounds.mean:
            yield f"{where}: cosines with torch's vectors of {row.cosine_mean:.8g} in the mean, at least {bounds.mean:g} is needed"
    for side, value in found.together.items():
        if value > bounds.together:
            yield f"{side}: a vector alone and in a batch differ by {value:.2g}, at most {bounds.together:g} is allowed"
    for r in found.recall:
        if r.difference < -bounds.recall and r.high < 0:
            yield (
                f"{r.direction}: recall@{r.k} is lower by {-r.difference:.3f} [{-r.high:.3f}, {-r.low:.3f}], "
                f"at most {bounds.recall:g} is allowed"
            )
