"""Which part provides which encoding, and from what.

A method declares what it computes by ``@provides(output, *inputs)``. A ``Graph`` collects what the parts of a model provide; it is
checked when the model is built.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, cast

from torch import nn

from diptych.core.errors import DiptychError, nearest


class Declaration(NamedTuple):
    """What a method computes (``outputs``) and from what. See ``provides``."""

    outputs: tuple[str, ...]
    inputs: tuple[str, ...]
    paired: bool
    together: str
    kind: str


F = TypeVar("F", bound=Callable[..., Any])


def provides(
    outputs: str | tuple[str, ...], *inputs: str, paired: bool = False, together: str = "", kind: str = ""
) -> Callable[[F], F]:
    """Mark a method as the provider of encodings.

    outputs: one name, or several that the method returns as a tuple. inputs: names of fields and encodings, in the order of its
    parameters; one that ends in ``?`` is None if the batch does not have it. ``{image}`` means every field of that kind.
    paired: the form for rows next to rows without gradients, where what depends on one field alone is computed once; another
    provider is the plain form.
    together: the name of an attribute of the part; if it is true, and all outputs are wanted in a training pass, this call replaces
    the providers of the single outputs.
    kind: the kind of field that the output is (such as ``image`` for random crops of the image), so that towers encode it.
    """
    names = (outputs,) if isinstance(outputs, str) else outputs

    def mark(method: F) -> F:
        """The same method with this declaration added to those it already has."""
        declared = getattr(method, "provided", ())
        method.provided = (*declared, Declaration(names, inputs, paired, together, kind))  # type: ignore[attr-defined]
        return method

    return mark


def declarations(cls: type) -> dict[str, tuple[Declaration, ...]]:
    """Methods of a class that provide something, in the order of its definition; a method that overrides one keeps the declaration
    of its base.
    """
    result: dict[str, tuple[Declaration, ...]] = {}
    for base in reversed(cls.__mro__):
        for name, method in vars(base).items():
            if declared := getattr(method, "provided", ()):
                result[name] = declared
    return result


@dataclass(frozen=True)
class Provider:
    """One way to compute encodings: a method of a part or an objective."""

    part: str  # its name in messages and after ``@``: vision, text, objectives.text_prediction
    owner: nn.Module
    name: str  # of the method
    outputs: tuple[str, ...]
    inputs: tuple[str, ...]
    paired: bool = False
    together: str = ""

    @property
    def method(self) -> Callable[..., Any]:
        """The method as it is now, since sharding and compiling replace it."""
        return cast(Callable[..., Any], getattr(self.owner, self.name))

    @property
    def ready(self) -> bool:
        """Whether a provider of several outputs may be used."""
        return bool(getattr(self.owner, self.together, False))


def renamed(name: str, fields: Mapping[str, str]) -> str:
    """The name of an encoding with other fields: {"image": "video"} turns image.tokens into video.tokens."""
    if not fields:
        return name
    teacher, colon, own = name.rpartition(":")
    field, dot, rest = own.partition(".")
    return teacher + colon + fields.get(field, field) + dot + rest


class Graph:
    """All providers of a model. Built and checked once, when the model is built.

    fields: the kind of each field that a batch may have. choices: {encoding: part} where several provide it.
    """

    def __init__(self, fields: Mapping[str, str], choices: Mapping[str, str] | None = None):
        self.fields = dict(fields)
        self.choices = dict(choices or {})
        self.teachers: dict[str, Graph] = {}
        self._table: dict[str, list[Provider]] = {}
        self._leaves: dict[str, frozenset[str]] = {}
        self._behind: dict[frozenset[str], frozenset[str]] = {}
        self._declared: list[tuple[str, nn.Module, Mapping[str, str]]] = []

    def add(self, part: str, owner: nn.Module, names: Mapping[str, str] | None = None) -> None:
        """What a part or an objective provides, for the fields that exist so far. names: which fields it reads instead of those
        named in its code.
        """
        self._declared.append((part, owner, names or {}))
        for declared in declarations(type(owner)).values():
            for d in declared:
                if d.kind:
                    self.fields |= {renamed(name, names or {}): d.kind for name in d.outputs}
        self._rebuild()

    def _rebuild(self) -> None:
        self._table, self._leaves, self._behind = {}, {}, {}
        for part, owner, names in self._declared:
            for method, declared in declarations(type(owner)).items():
                for d in declared:
                    for outputs, inputs in self._expanded(d, names):
                        provider = Provider(part, owner, method, outputs, inputs, d.paired, d.together)
                        for output in outputs:
                            self._table.setdefault(output, []).append(provider)
        known = {*self._table, *self.fields}
        for output, found in self._table.items():
            rivals = [p for p in found if not p.paired and not p.together]
            if len({p.part for p in rivals}) > 1:
                # Only those with all that they read: a tower that does not read clips backwards leaves it to another part.
                whole = [p for p in rivals if all(i.partition("@")[0] in known or i[-1] == "?" or ":" in i for i in p.inputs)]
                self._table[output] = [p for p in found if p not in rivals or p in whole or not whole]

    def _expanded(self, d: Declaration, names: Mapping[str, str]) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
        """Outputs and inputs for each field that a declaration covers."""
        slot = next((m[1] for name in (*d.outputs, *d.inputs) if (m := re.match(r"\{(\w+)\}", name))), None)
        if slot is None:
            yield tuple(renamed(n, names) for n in d.outputs), tuple(renamed(n, names) for n in d.inputs)
            return
        for field, kind in self.fields.items():
            if kind == slot:
                yield (
                    tuple(n.replace(f"{{{slot}}}", field) for n in d.outputs),
                    tuple(n.replace(f"{{{slot}}}", field) for n in d.inputs),
                )

    def settle(self, wanted: Collection[str]) -> None:
        """Ask the providers of several encodings that are all wanted whether they may be used; some find out by a trial run."""
        wanted = self.behind(wanted)
        for provider in {p for name in wanted for p in self.candidates(name)[0] if p.together}:
            _ = set(provider.outputs) <= wanted and provider.ready

    # --- looking up ---

    def gives(self, name: str) -> bool:
        """Whether an encoding can be computed from fields."""
        try:
            self.leaves(name)
        except DiptychError:
            return False
        return True

    def candidates(self, name: str) -> tuple[list[Provider], str]:
        """The providers of an encoding, and its plain name. A part named after ``@``, or chosen by the recipe, is the only
        provider.
        """
        plain, _, part = name.partition("@")
        part = part or self.choices.get(plain, "")
        result = self._table.get(plain, [])
        return ([p for p in result if p.part == part] if part else result), plain

    def plain(self, name: str) -> Provider:
        """The plain provider of an encoding. DiptychError if there is none, or more than one."""
        result = [p for p in self.candidates(name)[0] if not p.paired and not p.together]
        parts = list(dict.fromkeys(p.part for p in result))
        if len(parts) > 1:
            one = " or ".join(f"encodings: {{'{name}': {part}}}" for part in parts)
            raise DiptychError(f"parts {', '.join(parts)} all provide '{name}'; name one of them in the recipe: {one}")
        if not result:
            raise DiptychError(f"nothing provides '{name}'{self._hint(name)}")
        return result[0]

    def _hint(self, name: str) -> str:
        """The nearest name, of the same field if there is such a field."""
        plain = name.partition("@")[0]
        if plain in self._table:
            return f"; {', '.join(dict.fromkeys(p.part for p in self._table[plain]))} provides '{plain}'"
        known = [*self._table, *self.fields]
        field = plain.partition(".")[0]
        return nearest(name, [n for n in known if n.partition(".")[0] == field] or known)

    def serves(self, provider: Provider, output: str) -> bool:
        """Whether a provider may answer for an output that is asked for without ``@``."""
        result = self.candidates(output)[0]
        return provider in result and len({p.part for p in result if not p.paired and not p.together}) < 2

    def short(self, name: str) -> str:
        """The name without ``@part`` if that part would be asked anyway."""
        plain, at, part = name.partition("@")
        result = self.candidates(plain)[0] if at else []
        return plain if result and all(p.part == part for p in result) else name

    def parent(self, name: str) -> str:
        """The field of a batch that a name belongs to: video for video.frames; "" if it is not a field."""
        if name not in self.fields or name in self._table:
            return ""
        root = name.partition(".")[0]
        return root if root in self.fields else name

    def leaves(self, name: str) -> frozenset[str]:
        """The fields of a batch that an encoding depends on. DiptychError if it cannot be computed."""
        if name not in self._leaves:
            self._leaves[name] = self._find_leaves(name, ())
        return self._leaves[name]

    def _find_leaves(self, name: str, path: tuple[str, ...]) -> frozenset[str]:
        if name in path:
            raise DiptychError(f"'{name}' needs itself: {' ← '.join((*path, name))}")
        teacher, colon, rest = name.partition(":")
        if colon:
            if teacher not in self.teachers:
                raise DiptychError(
                    f"there is no teacher '{teacher}'{nearest(teacher, self.teachers)}; declare it under `teachers:`"
                )
            return self.teachers[teacher].leaves(rest)
        if field := self.parent(name):
            return frozenset({field})
        try:
            inputs = self.plain(name).inputs
        except DiptychError as error:
            raise DiptychError(
                f"{error}, which '{path[-1]}' needs" if path and "nothing provides" in str(error) else str(error)
            ) from None
        return frozenset().union(*(self._find_leaves(i.rstrip("?"), (*path, name)) for i in inputs))

    def behind(self, names: Collection[str]) -> frozenset[str]:
        """These encodings, and all those from which they are computed."""
        asked = frozenset(names)
        if asked not in self._behind:
            result: set[str] = set()
            left = [self.short(name.rstrip("?")) for name in asked]
            while left:
                if (name := left.pop()) not in result and self.gives(name):
                    result.add(name)
                    inputs = () if self.parent(name) or ":" in name else self.plain(name).inputs
                    left += [self.short(i.rstrip("?")) for i in inputs]
            self._behind[asked] = frozenset(result)
        return self._behind[asked]

    def pick(self, name: str, paired: bool, wanted: Collection[str]) -> Provider:
        """The provider to use: the form for pairs, a call that gives several wanted encodings at once, or the plain one."""
        for p in self.candidates(name)[0]:
            if paired and p.paired:
                return p
            if p.together and set(p.outputs) <= set(wanted) and all(self.serves(p, o) for o in p.outputs) and p.ready:
                return p
        return self.plain(name)
