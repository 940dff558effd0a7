"""Named configurations, built-in or by path: recipes, curation plans and studies are read, overridden and checked here."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic

from diptych.config.overrides import Overrides, parse_overrides, set_dotted
from diptych.config.typed import Schema, check, read_yaml
from diptych.config.variants import MARK, Variants, chosen, split_name
from diptych.core.errors import DiptychError, nearest


@dataclass(frozen=True)
class Library(Generic[Schema]):
    """Configurations of one schema."""

    schema: type[Schema]
    what: str  # "recipe", for messages
    folder: Path  # of the built-in ones: NAME.yaml, also in subfolders
    saved_as: str = ""  # the file in which a result directory keeps its resolved configuration: recipe.yaml
    shorthands: Mapping[str, str] = field(default_factory=dict)  # see ``set_dotted``
    upgrade: Callable[[dict[str, Any], str], dict[str, Any]] | None = None  # (content, file) of an older format → the current one
    explain: Callable[[str], str | None] | None = None  # why a name that others know is not in this library; None: unknown

    def names(self) -> tuple[str, ...]:
        """The names of the built-in configurations, sorted."""
        return tuple(sorted(path.stem for path in self.folder.rglob("*.yaml")))

    def variants(self, name: str) -> dict[str, str]:
        """What the variants of a configuration are for: {"clip@small": about}."""
        listed = check(Variants, {"variants": read_yaml(self.path(name), f"a {self.what}").get("variants") or {}}, name).variants
        return {f"{name}{MARK}{variant}": v.about for variant, v in listed.items()}

    def path(self, name_or_path: str | Path) -> Path:
        """The file of a configuration: a built-in one by name, your own by path, or that of a result by its directory.

        A variant, ``NAME@VARIANT``, is in the file of its configuration.

        Raises DiptychError if there is none, with the nearest name. A built-in name takes precedence over a directory of that name.
        """
        name = split_name(str(name_or_path))[0] if not Path(name_or_path).exists() else str(name_or_path)
        if name in self.names():
            return next(self.folder.rglob(f"{name}.yaml"))
        path = Path(name)
        if self.saved_as and path.is_dir():
            path = path / self.saved_as
        if path.suffix not in (".yaml", ".yml"):
            if self.explain is not None and (why := self.explain(name)) is not None:
                raise DiptychError(why)
            raise DiptychError(f"there is no {self.what} '{name}'{nearest(name, self.names())}; your own: a path ending in .yaml")
        if not path.is_file():
            raise DiptychError(f"no {self.what} at '{path}'")
        return path

    def read(self, source: str | Path | Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """The unchecked content of a configuration, with its name filled in, and where it comes from, for messages."""
        if isinstance(source, Mapping):
            return chosen(copy.deepcopy(dict(source)), "", self.what, self.shorthands), self.what
        path = self.path(source)
        tree = read_yaml(path, f"a {self.what}")
        tree.setdefault("name", path.parent.name if path.name == self.saved_as else path.stem)
        variant = split_name(str(source))[1] if not Path(source).exists() else ""
        return chosen(tree, variant, str(path), self.shorthands), str(path)

    def load(self, source: str | Path | Mapping[str, Any], overrides: Overrides = None) -> Schema:
        """A configuration by name, path or as plain data, with ``overrides``; checked against the schema.

        Raises DiptychError naming the file, the key, what was expected and the nearest valid key.
        """
        return self.check(*self.read(source), overrides)

    def check(self, tree: dict[str, Any], where: str, overrides: Overrides = None) -> Schema:
        """``tree``, changed by ``overrides``, as the schema. Raises DiptychError like ``load``."""
        for key, value in parse_overrides(overrides).items():
            set_dotted(tree, key, value, self.shorthands)
        return check(self.schema, self.upgrade(tree, where) if self.upgrade else tree, where)
