"""The dual encoder to adapt, as the beginning of a recipe: parts of the right kinds and sizes, its tokenizer, its scale."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.config.overrides import set_dotted
from diptych.config.recipe import Recipe
from diptych.core.errors import DiptychError
from diptych.core.files import read_json
from diptych.objectives.contrastive import Sigmoid
from diptych.training.start.initialize import HubStart, RunStart, open_start

PARTS = ("vision", "text", "space")
STEM = 8  # pixels of a patch of a tower without ``patch``, whose stem are convolutions
SCALED = ("info_nce", "sigmoid", "class_names")  # objectives that hold the scale of similarities


@dataclass(frozen=True)
class TowerModel:
    """A model with two towers, at an address that ``weights:`` takes.

    tree: the keys of a recipe that fits its weights (size, embed_dim, data, parts). contrast: the kind of its contrastive loss,
    ``info_nce`` or ``sigmoid``. scaled: the name of the objective that holds its learned scale; a recipe that starts from its
    weights takes the scale over where its own objective has this name. classes: the names of the classes that it is to learn.
    """

    address: str
    tree: dict[str, Any]
    contrast: str = "info_nce"
    scaled: str = "info_nce"
    classes: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        """The longest text, in tokens."""
        return int(self.tree["data"]["tokenizer"]["max_length"])

    @property
    def patches(self) -> int:
        """How many patches an image has."""
        return int((self.tree["data"]["image_size"] // (self.tree["parts"]["vision"].get("patch") or STEM)) ** 2)


def tower_model(address: str) -> TowerModel:
    """The model at ``hf:PATH`` (a CLIP or SigLIP of transformers), or of a run with two towers that scores by similarity.

    Raises DiptychError for anything else, with the reason.
    """
    start = open_start(address)
    if isinstance(start, HubStart):
        return _of_transformers(start)
    assert isinstance(start, RunStart)
    return _of_run(start)


def _of_transformers(start: HubStart) -> TowerModel:
    if why := start.unreadable:
        raise DiptychError(
            f"{start.address}: {why}; ways that train a tower need its words, so choose one that works on image vectors"
        )
    tree: dict[str, Any] = {"parts": {}, "data": {}}
    for key, value in start.family.options(start.config).items():
        set_dotted(tree, key, value, {})
    contrast = "sigmoid" if getattr(start.family, "contrast", None) is Sigmoid else "info_nce"
    return TowerModel(start.address, tree, contrast, contrast)


def _of_run(start: RunStart) -> TowerModel:
    recipe = start.recipe
    if start.only:
        raise DiptychError(f"{start.address}: give the whole run; a tower alone has no class names")
    if recipe.adapters:
        raise DiptychError(
            f"{start.address} has adapters already ({', '.join(recipe.adapters)}); export it, which merges them, and adapt "
            f"hf:{start.run}/export/transformers"
        )
    if not {"vision", "text"} <= set(recipe.parts) or recipe.score != "similarity":
        raise DiptychError(
            f"{start.address}: a run of '{recipe.name}' with the parts {', '.join(recipe.parts)}, scored by {recipe.score}; ways "
            "that train a tower need two towers that are compared by similarity"
        )
    parts = {
        name: {"kind": part.kind, **part.options, **({"fields": part.fields} if part.fields else {})}
        for name, part in recipe.parts.items()
        if name in PARTS
    }
    tree = {
        "size": recipe.size,
        "embed_dim": recipe.embed_dim,
        "data": {
            "image_size": read_json(start.run / "model.json")["image_size"],
            "tokenizer": recipe.data.tokenizer.model_dump(mode="json"),
        },
        "parts": parts,
    }
    name, contrast = _scale_of(recipe)
    return TowerModel(str(Path(start.address)), tree, contrast, name)


def _scale_of(recipe: Recipe) -> tuple[str, str]:
    """The name of the objective that holds the scale, and the kind of the contrastive loss; a fresh one where there is none."""
    named = {name: spec for stage in recipe.stages for name, spec in stage.objectives.items()}
    for kind in SCALED:
        for name, spec in named.items():
            if spec.kind == kind:
                sigmoid = kind == "sigmoid" or bool(spec.options.get("bias"))
                return name, "sigmoid" if sigmoid else "info_nce"
    return "info_nce", "info_nce"
