"""Field kinds: how each named field of a sample is decoded, fitted, augmented, collated, packed, blanked, shuffled and drawn.

| field | a sample's value | in a batch | kind for towers |
|---|---|---|---|
| ``image`` | uint8 [height, width, 3] | ``Images`` | image |
| ``views`` | made of ``image`` | ``Images``, several per sample with owner rows (``data.views``) | image |
| ``text`` | ``Captions`` | ``Texts``, one caption per sample | text |
| ``negatives`` | a wrong version of each caption | ``Texts`` with owner rows | text |
| ``label`` | ``Label`` | ``Labels``; ``label.classes`` is a text field | label |
| ``regions`` | list of ``Region`` | ``Regions``; ``regions.phrases`` is a text field | regions |
| ``turns`` | ``Conversation`` | ``Turns``; ``turns.images`` is an image field | turns |
| ``video`` | ``Video`` | ``Videos``; ``video.frames`` is an image field | video |
| ``document`` | ``Document`` | ``Documents``; ``document.texts``, ``document.images`` | document |

``unpaired_image`` and ``unpaired_text`` are images and texts without a partner (``data.unpaired``). A recipe declares its own field
by ``data.fields: {sound: package.module:SoundField}``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from diptych.core.errors import DiptychError, nearest
from diptych.core.registry import resolve
from diptych.data.fields.base import Context, Draw, Field
from diptych.data.fields.document import DocumentField
from diptych.data.fields.image import ImageField, ViewsField
from diptych.data.fields.label import LabelField
from diptych.data.fields.regions import RegionsField
from diptych.data.fields.text import NegativesField, TextField
from diptych.data.fields.turns import TurnsField
from diptych.data.fields.video import VideoField

if TYPE_CHECKING:
    from diptych.config.recipe import Recipe

FIELDS: dict[str, Any] = {
    "image": ImageField,
    "views": ViewsField,
    "text": TextField,
    "negatives": NegativesField,
    "label": LabelField,
    "regions": RegionsField,
    "turns": TurnsField,
    "video": VideoField,
    "document": DocumentField,
}
UNPAIRED = {"unpaired_image": "image", "unpaired_text": "text"}  # fields of samples that have nothing else

__all__ = ["FIELDS", "UNPAIRED", "Context", "Draw", "Field", "build_fields", "field_class", "kinds_of_fields"]


def field_class(name: str, own: Mapping[str, str] | None = None) -> type[Field]:
    """The class of a field by its name; ``own``: those that a recipe declares. DiptychError if there is no such field."""
    kind = (own or {}).get(name, name)
    if kind == name and name not in FIELDS:
        raise DiptychError(
            f"there is no field '{name}'{nearest(name, [*FIELDS, *(own or {})])}; your own: data.fields: "
            f"{{{name}: package.module:Class}}"
        )
    cls: type[Field] = resolve(kind, FIELDS, "field")
    return cls


def kinds_of_fields(recipe: Recipe | None = None) -> dict[str, str]:
    """The kind of every field and part of a field that a batch may have: {"image": "image", "video.frames": "image", …}."""
    own = {} if recipe is None else recipe.data.fields
    kinds = {}
    for name in [*FIELDS, *own]:
        cls = field_class(name, own)
        kinds[name] = cls.kind
        kinds |= {f"{name}.{inner}": kind for inner, kind in cls.inner.items()}
    return kinds | dict(UNPAIRED)


def build_fields(names: Iterable[str], context: Context) -> dict[str, Field]:
    """Fields ready to collate, by name."""
    return {name: field_class(name, context.own).build(name, context) for name in names}
