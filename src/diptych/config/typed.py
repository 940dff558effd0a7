"""YAML files with a schema: unknown keys refused, mistakes named with file, key, what was expected and the nearest valid key."""

from __future__ import annotations

import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from diptych.core.errors import DiptychError, nearest


class Strict(BaseModel):
    """A schema that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


class Kind(BaseModel):
    """``kind``, a registered name or ``package.module:Class``, and the options of that kind, which its class checks."""

    model_config = ConfigDict(extra="allow")
    kind: str

    @property
    def options(self) -> dict[str, Any]:
        """The options of its kind: all keys that are not in the schema."""
        return dict(self.model_extra or {})


Schema = TypeVar("Schema", bound=BaseModel)


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """The mapping in a YAML file. Raises DiptychError if it does not hold one. what: what the file must be, for the message, such
    as "a recipe".
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise DiptychError(f"{path}: not valid YAML: {error}") from None
    except UnicodeDecodeError:
        raise DiptychError(f"{path}: not UTF-8 text; {what} is a YAML file") from None
    if not isinstance(tree, dict):
        raise DiptychError(f"{path}: {what} is a mapping of keys, got {type(tree).__name__}")
    return tree


def check(schema: type[Schema], tree: dict[str, Any], where: str) -> Schema:
    """``tree`` as ``schema``. Raises DiptychError with one line for each mistake."""
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"])
            message = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "extra_forbidden":
                lines.append(f"unknown key '{key}'{nearest(str(problem['loc'][-1]), fields_at(schema, problem['loc'][:-1]))}")
            elif problem["type"] == "missing":
                lines.append(f"missing key '{key}'")
            elif not key:
                lines.append(message)
            else:
                given = repr(problem["input"])
                lines.append(f"{key}: {message}; got {given if len(given) < 80 else given[:77] + '…'}")
        raise DiptychError(f"{where}: " + f"\n{where}: ".join(lines)) from None


def fields_at(schema: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """The valid keys of the schema at the location of a validation error."""
    model: type[BaseModel] = schema
    for part in location:
        field = model.model_fields.get(str(part))
        inner = _model_in(field.annotation) if field else None  # a list's index or a dict's key: still the same model
        model = inner or model
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The first schema within list[M], dict[str, M], M | None …"""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (list, dict, tuple, Annotated, Union, types.UnionType):
        return next((model for inner in get_args(annotation) if (model := _model_in(inner))), None)
    return None
