"""``weights: hf:DIR`` of an export (``diptych export``) that another library trained further: its weights go back into the parts of
the run that was exported, with that run's tokenizer.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from diptych.config.recipe import Recipe
from diptych.core.errors import DiptychError
from diptych.core.files import read_json
from diptych.data.text import Tokenizer
from diptych.interop import families_of
from diptych.interop.base import State, state_of
from diptych.models.pretrained.hub import fetch
from diptych.models.vlm import VLM
from diptych.training.start.initialize import RunStart, Started, digest_of, put

MARK = "export.json"  # written by diptych export


def is_export(directory: str) -> bool:
    """Whether a directory is an export to transformers of a run that can be read back."""
    path = Path(directory).expanduser() / MARK
    if not path.is_file():
        return False
    known = {family.architecture for family in families_of("transformers") if family.reads}
    return read_json(path).get("architecture") in known


class ExportedStart:
    """An export of a run, perhaps trained further."""

    def __init__(self, address: str, directory: str):
        self.address, self.directory = address, directory
        note = read_json(Path(directory).expanduser() / MARK)
        self.architecture = str(note["architecture"])
        self.family = next(f for f in families_of("transformers") if f.architecture == self.architecture)
        try:
            self.run = RunStart(str(note["run"]))
        except DiptychError:
            raise DiptychError(
                f"weights: {address} was exported from the run {note['run']}, which is not there; its tokenizer is needed: set "
                f"'run' in {Path(directory) / MARK} to where the run is now"
            ) from None

    def tokenizer(self, max_length: int) -> Tokenizer | None:
        """The tokenizer of the run that was exported."""
        return self.run.tokenizer(max_length)

    def kept(self) -> list[int] | None:
        """Ids that the run's trimmed vocabulary kept; None: it was not trimmed."""
        return self.run.kept()

    def load(self, recipe: Recipe, model: VLM, objectives: nn.ModuleDict) -> Started:
        """Puts the weights into a model; adapters within its parts start fresh. DiptychError for what does not fit."""
        import transformers

        theirs: State = fetch(getattr(transformers, self.architecture), self.directory).float().state_dict()
        state = state_of(model, objectives)
        names_here = {model.bare_name(k): k for k in state if not model.adapter_owns(k)}
        found = {names_here[k]: v for k, v in self.family.read(model, theirs).items() if k in names_here}
        for name, value in found.items():
            if value.shape != state[name].shape:
                raise DiptychError(
                    f"weights: {self.address} does not fit: {name} is {tuple(state[name].shape)} here and {tuple(value.shape)} "
                    f"there; use the recipe of the run that was exported, {self.run.address}"
                )
        return put(found, model, objectives, Started(self.address, digest_of(theirs)), [])
