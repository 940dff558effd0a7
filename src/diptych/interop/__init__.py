"""Weights in and out of other libraries' models: one file a family, which holds a ``FAMILY`` (``interop.base.Family``) as a table of names.

To add one: a file with the subclass, and its name in ``FAMILIES``. What is made of it (``diptych export``, ``weights: hf:PATH``) needs no change.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from diptych.errors import DiptychError, nearest

if TYPE_CHECKING:
    from torch import nn

    from diptych.interop.base import Family
    from diptych.models.vlm import VLM
    from diptych.recipe import Recipe

FAMILIES = {"transformers": ("clip", "siglip"), "open_clip": ("open_clip",)}


def families(format: str) -> list[Family]:
    if format not in FAMILIES:
        raise DiptychError(f"there is no format '{format}'{nearest(format, FAMILIES)}")
    return [import_module(f"diptych.interop.{name}").FAMILY for name in FAMILIES[format]]


def family_for(format: str, recipe: Recipe, model: VLM, objectives: nn.ModuleDict) -> Family:
    """The family that computes exactly what this model does, by what it is made of.

    Raises DiptychError: what stands in the way of each, and the options with which a new run would fit.
    """
    reasons = []
    for family in families(format):
        misfits = family.misfits(recipe, model, objectives)
        if not misfits:
            return family
        remedies = " ".join(f"--set {m.set}" for m in misfits if m.set)
        line = f"{family.architecture}: {'; '.join(m.why for m in misfits)}"
        if remedies and all(m.set for m in misfits):
            line += f". A new run fits with {remedies}"
        reasons.append((len(misfits), sum(not m.set for m in misfits), line))
    reasons.sort(key=lambda r: (r[1], r[0]))
    lines = "\n  ".join(line for _, _, line in reasons)
    raise DiptychError(f"no class of {format} computes what a model of the recipe '{recipe.name}' does:\n  {lines}")
