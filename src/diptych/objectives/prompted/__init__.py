"""Objectives that belong to an adapter: CoCoOp's and MMRL's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from diptych.core.errors import DiptychError

if TYPE_CHECKING:
    from diptych.models.vlm import VLM

A = TypeVar("A")


def adapter_of(model: VLM, kind: type[A], name: str, objective: str) -> A:
    """The text part's adapter of a class. DiptychError if it has none."""
    text: Any = model.part("text")
    found = next((a for a in model.adapters.values() if isinstance(a, kind) and a.part is text), None)
    if found is None:
        raise DiptychError(f"objective {objective} needs an adapter of parts.text; set adapters.text={{kind: {name}}}")
    return found
