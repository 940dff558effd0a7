"""The model card of an export written again, with other assumptions or terms, or after its run was evaluated."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from diptych.core.errors import DiptychError
from diptych.core.files import read_json, write_text
from diptych.data.provenance.carbon import Assumptions
from diptych.inference.export import MARK, Exported
from diptych.inference.export.card import model_card, opening, origin
from diptych.inference.run import TrainedModel
from diptych.training.run_files import RunFiles

MANIFEST = "diptych-onnx.json"  # of an ONNX export
ORIGIN = "\n## Origin\n"  # the section of its card that is of the run


def run_card(run: Path, assumed: Assumptions, licence: str = "", checkpoint: str = "last") -> str:
    """The card of a run that was not exported, as Markdown: the same without how another library loads it."""
    trained = _loaded(run, checkpoint)
    what = opening(run, trained, f"Run `{run.name}`, checkpoint `{checkpoint}`, weights `{trained.key}`")
    lines = [*what, "## Use", f'```python\nimport diptych\n\nmodel = diptych.load("{run.name}")\n```']
    return "\n\n".join([*lines, *origin(run, trained, str(trained.key), assumed, licence)]) + "\n"


def rewrite(folder: Path, assumed: Assumptions, licence: str = "") -> Path:
    """The path of the card, README.md, of an export, written again. DiptychError if the run is gone, or has other weights now."""
    mark = folder / MARK
    if mark.is_file():
        said: dict[str, Any] = read_json(mark)
        trained = _loaded(Path(said["run"]), said["checkpoint"], folder, said["key"])
        made = Exported(
            folder, said["format"], said["architecture"], said["run"], said["checkpoint"], said["key"], said.get("adapters", False)
        )
        write_text(folder / "README.md", model_card(Path(said["run"]), trained, made, said.get("use", ()), assumed, licence))
        return folder / "README.md"
    if not (folder / MANIFEST).is_file():
        raise DiptychError(f"{folder} is not an export of `diptych export` (it has no {MARK} and no {MANIFEST})")
    manifest = read_json(folder / MANIFEST)
    run, source = Path(manifest["source"]["model"]), manifest["source"]
    if not RunFiles(run).exists():
        raise DiptychError(f"{folder} was made from '{source['model']}', which is no run here: its card stays as it is")
    trained = _loaded(run, manifest.get("checkpoint") or "last", folder, source["key"])
    _, *what = opening(run, trained, "The model in torch")
    card = (folder / "README.md").read_text(encoding="utf-8").partition(ORIGIN)[0]
    card = re.sub("^license: .*$", f"license: {licence or 'other'}", card, count=1, flags=re.MULTILINE)
    body = "\n\n".join([*what, *origin(run, trained, str(trained.key), assumed, licence)])
    write_text(folder / "README.md", f"{card.rstrip()}\n{ORIGIN}\n{body}\n")
    return folder / "README.md"


def _loaded(run: Path, checkpoint: str, folder: Path | None = None, key: str | None = None) -> TrainedModel:
    """The run's model, checked against the key that an export of it holds."""
    if not RunFiles(run).exists():
        raise DiptychError(f"{folder or run}: there is no run at '{run}'; a card is written from its files")
    trained = TrainedModel.load(run, "cpu", checkpoint=checkpoint)
    if key is not None and str(trained.key) != str(key):
        raise DiptychError(f"{folder}: the run '{run}' has other weights now ({trained.key}, then {key}); export it again")
    return trained
