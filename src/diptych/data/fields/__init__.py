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

Kinds that a recipe has to declare (``data.fields: {segments: {kind: segments}}``), since they are made of other fields:

| kind | in a batch |
|---|---|
| ``segments`` | a clip as pieces with a text each |
| ``tiles`` | pictures of any shape in tiles: ``Tiles``; under the name ``image`` |
| ``native`` | pictures of any shape at their own size: ``Native``; under the name ``image`` |
| ``shortest`` | the shortest caption |
| ``captions`` | several texts of each sample, or the sentences of them: ``Texts`` with owner rows |
| ``nouns`` | nouns of the caption that is read, in prompts: ``Texts`` with owner rows |
| ``wrong`` | wrong versions of the caption that is read, by kind: ``WrongTexts`` with owner rows |
| ``preferences`` | a question with a right and a wrong answer: ``Pairs``; its ``images`` is an image field |
| ``concepts`` | the concepts of the source, the same in every batch: ``Labels``, whose ``classes`` is a text field |
| ``grounded``, ``annotated`` | the caption with boxes as location tokens, or with a list of them; under the name ``text`` |
| ``dialogue`` | conversations by the processor of a model of transformers (``DialogueModel``): ``Dialogue`` |

``unpaired_image`` and ``unpaired_text`` are images and texts without a partner (``data.unpaired``). A recipe declares its own field
by ``data.fields: {sound: package.module:SoundField}``, and options by ``{video: {kind: video, frames: 4}}``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from diptych.core.errors import DiptychError, nearest
from diptych.core.registry import check_options, resolve
from diptych.data.fields.base import Context, Draw, Field
from diptych.data.fields.captions import CaptionsField, ConceptsField, NounsField
from diptych.data.fields.document import DocumentField
from diptych.data.fields.image import ImageField, ViewsField
from diptych.data.fields.label import LabelField
from diptych.data.fields.regions import RegionsField
from diptych.data.fields.segments import SegmentsField, ShortestField
from diptych.data.fields.text import NegativesField, TextField
from diptych.data.fields.turns import TurnsField
from diptych.data.fields.video import VideoField

if TYPE_CHECKING:
    from diptych.config.recipe import FieldSpec, Recipe

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
DECLARED: dict[str, Any] = {  # kinds that no field has by its name alone
    "segments": SegmentsField,
    "tiles": "diptych.data.fields.tiles:TilesField",
    "native": "diptych.data.tiles.native_field:NativeField",
    "shortest": ShortestField,
    "captions": CaptionsField,
    "nouns": NounsField,
    "concepts": ConceptsField,
    "preferences": "diptych.data.fields.preferences:PreferencesField",
    "wrong": "diptych.data.fields.wrong:WrongField",
    "grounded": "diptych.data.fields.grounded:GroundedField",
    "annotated": "diptych.data.fields.grounded:AnnotatedField",
    "dialogue": "diptych.data.fields.dialogue:DialogueField",
}
UNPAIRED = {"unpaired_image": "image", "unpaired_text": "text"}  # fields of samples that have nothing else

__all__ = ["FIELDS", "UNPAIRED", "Context", "Draw", "Field", "build_fields", "field_class", "kinds_of_fields"]


def field_class(name: str, own: Mapping[str, str | FieldSpec] | None = None) -> type[Field]:
    """The class of a field by its name; ``own``: those that a recipe declares. DiptychError if there is no such field."""
    declared = (own or {}).get(name, name)
    kind = declared if isinstance(declared, str) else declared.kind
    if kind == name and name not in FIELDS and name not in (own or {}):
        raise DiptychError(
            f"there is no field '{name}'{nearest(name, [*FIELDS, *(own or {})])}; your own: data.fields: "
            f"{{{name}: package.module:Class}}"
        )
    cls: type[Field] = resolve(kind, {**FIELDS, **DECLARED}, "field")
    return cls


def kinds_of_fields(recipe: Recipe | None = None) -> dict[str, str]:
    """The kind of every field and part of a field that a batch may have: {"image": "image", "video.frames": "image", …}."""
    own = {} if recipe is None else recipe.data.fields
    kinds = {}
    for name in [*FIELDS, *own]:
        cls = field_class(name, own)
        options_of(name, own)  # wrong ones are reported when the model is built
        kinds[name] = cls.kind
        kinds |= {f"{name}.{inner}": kind for inner, kind in cls.inner.items()}
    return kinds | dict(UNPAIRED)


def build_fields(names: Iterable[str], context: Context) -> dict[str, Field]:
    """Fields ready to collate, by name."""
    own = context.own
    return {name: field_class(name, own).build(name, replace(context, options=options_of(name, own))) for name in names}


def options_of(name: str, own: Mapping[str, str | FieldSpec]) -> dict[str, Any]:
    """What a recipe sets of a field: keyword-only parameters of its class. DiptychError for what the class does not take."""
    declared = own.get(name, name)
    given = {} if isinstance(declared, str) else declared.options
    return check_options(field_class(name, own), given, f"data.fields.{name}") if given else {}
