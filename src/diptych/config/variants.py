"""Variants of a configuration: ``maskvlm@tuned`` is the recipe ``maskvlm`` with the settings that it lists as ``variants.tuned``.

A built-in recipe holds the values of its paper. Settings that work better at small budgets, or with smaller parts, are a variant:
it has a name, says why it is there, and can be compared with the recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from diptych.config.overrides import set_dotted
from diptych.config.typed import Strict, check
from diptych.core.errors import DiptychError, nearest

MARK = "@"


class Variant(Strict):
    """What a variant changes (``set``: dotted keys, as for ``--set``), and why (``about``)."""

    about: Annotated[str, Field(min_length=1)]
    set: Annotated[dict[str, Any], Field(min_length=1)]


class Variants(Strict):
    """The variants of a configuration by name."""

    variants: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")], Variant] = Field(default={})


def split_name(name: str) -> tuple[str, str]:
    """``maskvlm@tuned`` → ("maskvlm", "tuned"); the second is empty without a variant. A path may contain ``@``, too."""
    base, mark, variant = name.rpartition(MARK)
    return (base, variant) if mark and base and "/" not in variant and "." not in variant else (name, "")


def chosen(tree: dict[str, Any], variant: str, where: str, shorthands: Mapping[str, str]) -> dict[str, Any]:
    """``tree`` without its ``variants``, changed by the one that is named; "" for none. The name becomes ``NAME@VARIANT``.

    Raises DiptychError if there is no such variant, or if the variants are malformed.
    """
    listed = check(Variants, {"variants": tree.pop("variants", None) or {}}, where).variants
    if not variant:
        return tree
    if variant not in listed:
        known = f"; it has: {', '.join(sorted(listed))}" if listed else "; it has none"
        raise DiptychError(f"{where}: there is no variant '{variant}'{nearest(variant, listed)}{known}")
    for key, value in listed[variant].set.items():
        set_dotted(tree, key, value, shorthands)
    tree["name"] = f"{tree['name']}{MARK}{variant}"
    return tree
