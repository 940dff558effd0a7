"""``diptych export``: a run as a directory that another library loads, without any code of ours."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from diptych.errors import DiptychError
from diptych.exporting.card import model_card
from diptych.files import write_atomically, write_json
from diptych.interop import family_for
from diptych.interop.base import Family, state_of, to_theirs
from diptych.interop.tokenizer import Vocabulary
from diptych.trained import TrainedModel

MARK = "export.json"  # says that the directory is ours to replace


@dataclass(frozen=True)
class Exported:
    """Where it lies, what loads it and which weights it holds."""

    path: Path
    format: str
    architecture: str
    run: str
    checkpoint: str
    key: str  # a hash of the run's weights


def export(
    run: Path, to: str = "transformers", out: Path | None = None, checkpoint: str = "last", architecture: str = ""
) -> Exported:
    """Write the run's averaged weights, configuration, tokenizer, image processor and model card to ``out`` (default: RUN/export/FORMAT).

    architecture: the class to be written, where a run can be several (default RUN/export/CLASS).

    Raises DiptychError where no class of that library computes what the model does (and names the options with which a new run would
    fit), or if ``out`` holds something else than an earlier export.
    """
    if not (run / "recipe.yaml").is_file():
        raise DiptychError(f"{run} is no run; a run is a directory that `diptych train` made")
    out = out or run / "export" / (architecture or to)
    refuse_foreign(out)
    trained = TrainedModel.load(run, "cpu", checkpoint=checkpoint)
    family = family_for(to, trained.recipe, trained.model, trained.objectives, architecture)
    made = Exported(out, to, family.architecture, str(run), checkpoint, str(trained.key))

    def write(directory: Path) -> None:
        directory.mkdir()
        _write(directory, family, trained)
        (directory / "README.md").write_text(model_card(run, trained, made), encoding="utf-8")
        write_json(directory / MARK, _plain(made))

    write_atomically(out, write)
    return made


def refuse_foreign(out: Path) -> None:
    if out.exists() and not (out / MARK).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise DiptychError(f"{out} exists and is no earlier export (it has no {MARK}); choose another --out")


def _plain(made: Exported) -> dict[str, Any]:
    return {
        "format": made.format,
        "architecture": made.architecture,
        "run": made.run,
        "checkpoint": made.checkpoint,
        "key": made.key,
        "diptych": version("diptych"),
    }


def _write(directory: Path, family: Family, trained: TrainedModel) -> None:
    from safetensors.torch import save_file

    model, objectives = trained.model, trained.objectives
    vocabulary = Vocabulary(model.tokenizer, family.end_last)
    state = family.settled(state_of(model, objectives), objectives)
    state["parts.text.embedding.weight"] = vocabulary.rows(state["parts.text.embedding.weight"])
    weights = to_theirs(state, family.entries(model, objectives))
    weights = {name: value.detach().float().cpu().contiguous().clone() for name, value in weights.items()}
    save_file(weights, directory / family.weights, metadata={"format": "pt"})
    family.describe(directory, model, vocabulary)
