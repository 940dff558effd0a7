"""From a name in a recipe to a class: built-in kinds by table, your own by ``package.module:Class``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from diptych.core.errors import DiptychError, nearest


def resolve(kind: str, table: Mapping[str, Any], what: str) -> Any:
    """The class named ``kind``: a key of ``table`` (values: classes or ``module:Class``) or ``package.module:Class``."""
    target = table.get(kind, kind)
    if not isinstance(target, str):
        return target
    if ":" not in target:
        raise DiptychError(f"there is no {what} '{kind}'{nearest(kind, table)}; your own: package.module:Class")
    module_name, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        if error.name and not module_name.startswith(error.name):
            raise  # the module exists; something that it imports does not
        raise DiptychError(f"{what} '{kind}': cannot import '{module_name}'; is it installed or on PYTHONPATH?") from error
    except AttributeError as error:
        names = [n for n in vars(importlib.import_module(module_name)) if not n.startswith("_")]
        raise DiptychError(f"{what} '{kind}': module '{module_name}' has no '{attribute}'{nearest(attribute, names)}") from error


def option_names(cls: Any) -> dict[str, inspect.Parameter]:
    """The options a recipe may set on ``cls``: the keyword-only parameters of its constructor; ``from_`` is called ``from``.

    ``**sizes: Unpack[Sizes]`` means the keys of the ``TypedDict`` Sizes, each None if not given.
    """
    parameters = inspect.signature(cls.__init__ if inspect.isclass(cls) else cls).parameters.values()
    own = {p.name.rstrip("_"): p for p in parameters if p.kind is p.KEYWORD_ONLY}
    return own | {n: inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None) for n in _packed(cls)}


def _packed(cls: Any) -> dict[str, Any]:
    """Names and types of the keywords that a constructor takes by ``Unpack``."""
    function = cls.__init__ if inspect.isclass(cls) else cls
    packed = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.VAR_KEYWORD]
    if not packed or "Unpack[" not in str(getattr(function, "__annotations__", {}).get(packed[0])):
        return {}
    return get_type_hints(get_args(_annotation(cls, packed[0]))[0])


def _annotation(cls: Any, name: str) -> Any:
    """The type of one parameter; read alone, since others may be annotated with names that exist for the type checker only."""
    function = cls.__init__ if inspect.isclass(cls) else cls
    if name not in function.__annotations__:
        return _packed(cls).get(name, Any)
    hint = function.__annotations__[name]
    if not isinstance(hint, str):
        return hint
    try:
        return eval(hint, function.__globals__)  # what typing.get_type_hints does, for one name; the text is the class's own source
    except NameError:
        return Any


def check_options(cls: Any, options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Options checked against the constructor's names and annotations. Raises DiptychError for an option that does not fit."""
    known = option_names(cls)
    checked = {}
    for name, value in options.items():
        if name not in known:
            raise DiptychError(f"{where}: unknown option '{name}'{nearest(name, known)}")
        hint = _annotation(cls, known[name].name)
        try:
            checked[known[name].name] = TypeAdapter(hint).validate_python(value)
        except ValidationError as error:
            plain = hint.__origin__ if get_origin(hint) is Annotated else hint  # the limits are in pydantic's message
            expected = getattr(plain, "__name__", str(plain)) if not get_args(plain) else str(plain).replace("typing.", "")
            raise DiptychError(f"{where}.{name}: expected {expected}, got {value!r} ({error.errors()[0]['msg']})") from None
    missing = [n for n, p in known.items() if p.default is p.empty and p.name not in checked]
    if missing:
        raise DiptychError(f"{where}: missing option '{missing[0]}'")
    return checked
