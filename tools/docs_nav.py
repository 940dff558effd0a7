"""A hook of mkdocs: the pages of systems are added to the navigation, in the order of their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    """The configuration with ``Systems: systems`` replaced by its pages."""
    pages = [f"systems/{path.name}" for path in sorted(Path(config["docs_dir"], "systems").glob("*.md"))]
    for group in config["nav"]:
        for entries in group.values():
            for i, entry in enumerate(entries):
                if entry == {"Systems": "systems"}:
                    entries[i] = {"Systems": pages}
    return config
