"""``diptych export``: a run as a directory that another library loads, without any code of ours."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from diptych.core.errors import DiptychError
from diptych.core.files import read_json_or, write_atomically, write_json
from diptych.data.conversations.turns import DESCRIBE
from diptych.inference.export.card import model_card
from diptych.inference.foreign.tuned import REQUEST
from diptych.inference.onnx.files import digest
from diptych.inference.run import TrainedModel
from diptych.interop import family_for
from diptych.interop.base import Family
from diptych.interop.families import whole
from diptych.interop.families.whole import whole_model
from diptych.training.run_files import RunFiles

MARK = "export.json"  # marks a directory that may be replaced; training.start.exported reads it


@dataclass(frozen=True)
class Exported:
    """The directory, the class that loads it and the weights that it holds."""

    path: Path
    format: str
    architecture: str
    run: str
    checkpoint: str
    key: str  # a hash of the run's weights
    adapters: bool = False  # whether they are in a separate directory
    notes: tuple[str, ...] = ()  # where the library's own pipelines do not do what the class does


def export(
    run: Path,
    to: str = "transformers",
    out: Path | None = None,
    checkpoint: str = "last",
    architecture: str = "",
    adapters: bool = False,
) -> Exported:
    """Write the run's averaged weights, configuration, tokenizer, image processor and model card to ``out`` (default:
    RUN/export/FORMAT).

    architecture: the class to be written, if several fit the run (default RUN/export/CLASS). adapters: a language model's
    adapters as a directory of peft, ``adapter``, next to a model without them; otherwise they are merged.

    Raises DiptychError if no class of that library computes what the model does (it names the options with which a new run would
    fit), or if ``out`` holds something other than an earlier export.
    """
    if not RunFiles(run).exists():
        raise DiptychError(f"{run} is not a run; a run is a directory that `diptych train` made")
    out = out or run / "export" / (architecture or to)
    refuse_foreign(out)
    trained = TrainedModel.load(run, "cpu", checkpoint=checkpoint)
    if whole_model(trained.model) is None:
        trained.model.merge_adapters(but="lm")  # its adapters may be written separately
        family = family_for(to, trained.recipe, trained.model, trained.objectives, architecture)
    else:
        family = _whole(to, architecture, run)
        if not adapters:
            trained.model.merge_adapters()
    warnings = tuple(family.warnings(trained.model))
    made = Exported(out, to, family.architecture, str(run), checkpoint, str(trained.key), adapters, warnings)

    lm = "lm" in trained.model.parts  # the prompt for a caption then depends on the run, not on the class

    def write(directory: Path) -> None:
        """Writes weights, configuration, model card and the note of how it was made."""
        directory.mkdir()
        notes = family.write(directory, trained.model, trained.objectives, str(out) if adapters else "")
        notes = [*notes, *(f"{note[0].upper()}{note[1:]}." for note in warnings)]
        files = {p.relative_to(directory).as_posix(): digest(p) for p in sorted(directory.rglob("*")) if p.is_file()}
        (directory / "README.md").write_text(model_card(run, trained, made, notes), encoding="utf-8")
        asks: dict[str, Any] = {"caption": DESCRIBE if trained.answering else ""} if lm else {}
        if whole_model(trained.model) is not None:  # prompts are those of the model's own template
            asks = {"whole": True, **read_json_or(run / REQUEST, {})}
        write_json(directory / MARK, {**_plain(made), **asks})
        prompt = {"caption": DESCRIBE if trained.answering else ""} if lm else {}
        write_json(directory / MARK, {**_plain(made), **prompt, "use": notes, "files": files})

    write_atomically(out, write)
    return made


def _whole(to: str, architecture: str, run: Path) -> Family:
    """The family of a tuned model of transformers. DiptychError for another format or class than its own."""
    if to != "transformers" or architecture:
        raise DiptychError(f"{run}: a tuned model of transformers is exported as its own class; leave out --to and --architecture")
    return whole.FAMILY


def refuse_foreign(out: Path) -> None:
    """DiptychError if a directory holds something other than an earlier export."""
    if out.exists() and not (out / MARK).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise DiptychError(f"{out} exists and is not an earlier export (it has no {MARK}); choose another --out")


def _plain(made: Exported) -> dict[str, Any]:
    return {
        "format": made.format,
        "architecture": made.architecture,
        "run": made.run,
        "checkpoint": made.checkpoint,
        "key": made.key,
        "adapters": made.adapters,
        "diptych": version("diptych"),
    }
