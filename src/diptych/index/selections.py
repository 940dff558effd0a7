"""Pictures of an index that are kept under a name, to train on, to curate, or to show."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from diptych.core.errors import DiptychError, nearest
from diptych.index.catalog import Catalog

_NAME = re.compile(r"[\w.-]([\w .-]{0,78}[\w.-])?")


class Selections:
    """Selections of one index."""

    def __init__(self, catalog: Catalog):
        self.catalog = catalog

    def put(self, name: str, ids: Sequence[int], where: Path) -> None:
        """Keeps ids under a name, each once. DiptychError for a name with other characters than letters, digits, spaces and
        ``_.-``, and for ids that are not there.
        """
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise DiptychError(
                f"selection '{str(name)[:80]}': a name has 1 to 80 letters, digits, spaces or _.- and begins and ends without space"
            )
        wanted = list(dict.fromkeys(int(i) for i in ids))
        known = self.catalog.present([i for i in wanted if 0 < i < 2**63])
        missing = [i for i in wanted if i not in known]
        if missing or not wanted:
            what = f"there is no picture {missing[0]}" if missing else "no pictures in it"
            raise DiptychError(f"{where}: selection '{name}': {what}")
        with self.catalog.change() as connection:
            connection.execute("DELETE FROM selections WHERE name = ?", (name,))
            connection.executemany("INSERT INTO selections VALUES (?, ?, ?)", [(name, rank, i) for rank, i in enumerate(wanted)])

    def all(self) -> dict[str, list[int]]:
        """Names with their ids, without pictures that are gone."""
        found: dict[str, list[int]] = {}
        for (name,) in self.catalog.rows("SELECT DISTINCT name FROM selections ORDER BY name"):
            found[name] = []
        rows = self.catalog.rows(
            "SELECT s.name, s.id FROM selections s JOIN pictures p ON p.id = s.id WHERE p.state = 'ok' ORDER BY s.name, s.rank"
        )
        for name, id in rows:
            found[name].append(id)
        return found

    def ids(self, name: str, where: Path | str) -> list[int]:
        """The ids of one. DiptychError if there is none of that name, or if all its pictures are gone."""
        known = self.all()
        if name not in known:
            raise DiptychError(f"{where}: there is no selection '{name}'{nearest(name, known)}")
        if not known[name]:
            raise DiptychError(f"{where}: the pictures of the selection '{name}' are gone")
        return known[name]

    def delete(self, name: str, where: Path) -> None:
        """Removes one. DiptychError if there is none of that name."""
        known = self.all()
        if name not in known:
            raise DiptychError(f"{where}: there is no selection '{name}'{nearest(name, known)}")
        with self.catalog.change() as connection:
            connection.execute("DELETE FROM selections WHERE name = ?", (name,))
