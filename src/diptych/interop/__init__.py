"""Weights to and from other libraries' models: one file per family, which holds a ``FAMILY`` (``interop.base.Family``) as a table
of names.

To add one: a file with the subclass, and its name in ``FAMILIES``. The features that use it (``diptych export``, ``weights:
hf:PATH``) need no change.
"""

from __future__ import annotations

import shlex
from importlib import import_module
from typing import TYPE_CHECKING

from diptych.core.errors import DiptychError, nearest
from diptych.interop.base import Family, Misfit

if TYPE_CHECKING:
    from torch import nn

    from diptych.config.recipe import Recipe
    from diptych.models.vlm import VLM

TOWERS = {f"parts.{part}.kind={kind}" for part in ("vision", "text") for kind in ("clip", "siglip", "class", "bert", "coca")}
FAMILIES = {
    "transformers": ("clip", "siglip", "blip", "flava", "llava", "llava_next", "video_llava", "blip2", "chameleon", "videomae"),
    "open_clip": ("open_clip", "coca"),
}


def families_of(format: str) -> list[Family]:
    """The families of a format. DiptychError for an unknown one."""
    if format not in FAMILIES:
        raise DiptychError(f"there is no format '{format}'{nearest(format, FAMILIES)}")
    modules = [import_module(f"diptych.interop.families.{name}") for name in FAMILIES[format]]
    return [family for module in modules for family in getattr(module, "FAMILIES", ()) or (module.FAMILY,)]


def family_for(format: str, recipe: Recipe, model: VLM, objectives: nn.ModuleDict, architecture: str = "") -> Family:
    """The family that computes exactly what this model does, by its structure. architecture: only that class, for any score of the
    run.

    Raises DiptychError, with the reasons against each family, and the options with which a new run would fit; also those of other
    formats into which it fits, or would with such options.
    """
    reasons: list[tuple[int, int, str]] = []
    elsewhere: list[str] = []
    known = {family.architecture: family for family in families_of(format)}
    if architecture and architecture not in known:
        raise DiptychError(f"there is no export to a class '{architecture}'{nearest(architecture, known)}")
    for family in [known[architecture]] if architecture else known.values():
        misfits = _misfits(family, recipe, model, objectives, architecture)
        if not misfits:
            return family
        reasons.append((len(misfits), sum(not m.set for m in misfits), _reason(family.architecture, misfits)))
    reasons.sort(key=lambda r: (r[1], r[0]))
    for other in (name for name in FAMILIES if name != format and not architecture):
        for family in families_of(other):
            misfits = _misfits(family, recipe, model, objectives)
            if not misfits:
                elsewhere.insert(0, f"{other} has {family.architecture}, which does: --to {other}")
            elif all(m.set for m in misfits):
                elsewhere.append(_reason(f"{family.architecture} of {other}, with --to {other}", misfits))
    lines = "\n  ".join([*elsewhere, *(line for _, _, line in reasons)])
    raise DiptychError(f"no class of {format} computes what a model of the recipe '{recipe.name}' does:\n  {lines}")


def _reason(architecture: str, misfits: list[Misfit]) -> str:
    """Why a class does not fit and, if options help, with which a new run would."""
    line = f"{architecture}: {'; '.join(m.why for m in misfits)}"
    return line + (f". A new run fits with {_remedies(misfits)}" if all(m.set for m in misfits) else "")


def export_note(recipe: Recipe, model: VLM, objectives: nn.ModuleDict) -> str:
    """What to set so that a run can be exported to transformers; "" if it can be as it is, or if other towers would not help."""
    fixable = []
    for family in families_of("transformers"):
        misfits = _misfits(family, recipe, model, objectives)
        if not misfits:
            return ""
        if all(m.set in TOWERS for m in misfits):  # anything else would be another recipe
            fixable.append((len(misfits), family.architecture, _remedies(misfits)))
    if not fixable:
        return ""
    _, architecture, remedies = min(fixable, key=lambda entry: entry[0])
    return f"this run cannot be exported to transformers; one with {remedies} can ({architecture})"


def _misfits(family: Family, recipe: Recipe, model: VLM, objectives: nn.ModuleDict, architecture: str = "") -> list[Misfit]:
    misfits = family.misfits(recipe, model, objectives)
    if family.scores and recipe.score not in family.scores and not architecture:
        misfits.append(Misfit(f"it scores by {recipe.score}", f"score={family.scores[0]}"))
    return misfits


def _remedies(misfits: list[Misfit]) -> str:
    return " ".join(f"--set {shlex.quote(m.set)}" for m in misfits if m.set)
