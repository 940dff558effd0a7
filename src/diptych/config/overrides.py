"""Overrides of a configuration by dotted key: ``--set stages.0.lr=5e-4`` for recipes, plans and studies."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import yaml

from diptych.core.errors import DiptychError

Overrides = Mapping[str, Any] | Sequence[str] | None  # {"stages.0.lr": 5e-4} or ["stages.0.lr=5e-4"]


def parse_overrides(overrides: Overrides) -> dict[str, Any]:
    """``{dotted key: value}``; the values of ``key=value`` texts are read as YAML."""
    return dict(overrides) if isinstance(overrides, Mapping) else dict(_parse(text) for text in overrides or ())


def _parse(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise DiptychError(f"--set {text}: expected key=value, such as stages.0.lr=5e-4")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise DiptychError(f"--set {text}: the value is not valid YAML: {error}") from None
    if isinstance(parsed, str):
        with suppress(ValueError):  # YAML 1.1 reads 5e-4 as text
            parsed = float(parsed)
    return key, parsed


def set_dotted(tree: Any, dotted: str, value: Any, shorthands: Mapping[str, str] | None = None) -> None:
    """Changes one value in a tree of mappings and lists in place; missing mappings are created.

    An entry of a list is named by its position or by its ``name``, and ``*`` is every entry: ``stages.*.batch_size``; a step of a
    plan also by its operator or its ``as``.

    shorthands: with ``{"objectives": "weight"}`` a scalar ``info_nce: 1`` under ``objectives`` means ``info_nce: {weight: 1}``.

    Raises DiptychError if the key leads through an entry that a list does not have, or through a value that is not a mapping.
    """
    *parents, last = dotted.split(".")
    node = tree
    for depth, key in enumerate(parents):
        here = ".".join(parents[: depth + 1])
        if key == "*" and isinstance(node, list) and node:
            for place in range(len(node)):
                each = [*parents[:depth], str(place), *parents[depth + 1 :], last]
                set_dotted(tree, ".".join(each), copy.deepcopy(value), shorthands)
            return
        node, place = _locate(node, key, here)
        child = node.get(place) if isinstance(node, dict) else node[place]
        if not isinstance(child, dict | list):
            shorthand = (shorthands or {}).get(parents[depth - 1]) if depth else None
            if child is not None and not shorthand:
                raise DiptychError(f"--set {dotted}: {here} is {child!r}, which has no keys; set {here} itself")
            node[place] = {} if child is None else {shorthand: child}
        node = node[place]
    node, place = _locate(node, last, dotted)
    node[place] = value


def _locate(node: Any, key: str, where: str) -> tuple[Any, Any]:
    """The container that holds what ``key`` names in ``node``, and its key or position there."""
    if isinstance(node, dict):
        return node, key
    for i, item in enumerate(node):
        if item == key:
            node[i] = item = {key: {}}  # a step without options: `- text_length`
        if not isinstance(item, dict):
            continue
        if item.get("name", "main") == key:
            return node, i
        operator, options = next(iter(item.items()), ("", None))
        if len(item) == 1 and (key == operator or (isinstance(options, dict) and options.get("as") == key)):
            return item, operator
    if key.lstrip("-").isdigit() and -len(node) <= int(key) < len(node):
        return node, int(key)
    raise DiptychError(f"--set {where}: there is no entry '{key}' in a list of {len(node)}")
