"""``labels:``: images with any number of labels each."""

from __future__ import annotations

from collections.abc import Iterator

from diptych.core.errors import DiptychError
from diptych.data.sources.base import Entry
from diptych.data.sources.classes.source import LABEL_COLUMNS, METADATA, Classes, columns_of, divided
from diptych.data.sources.parquet import CellSource
from diptych.data.storage import files


class Labels(Classes):
    """A .csv, .tsv, .jsonl, .json or .parquet file (globs allowed) with columns of images and of labels, or a directory with such a
    table (metadata.csv, .jsonl or .parquet, as ``datasets`` reads it).

    A cell holds the labels of an image: a list, or a text with ``separator`` between them (default: the first of | ; , that is in
    it). Rows of the same image are joined. An empty cell is an image with none of the labels. ``labels``: the names of all labels
    of the source, sorted, in every split. A sample's labels are in ``extra["labels"]``; it has a caption for each of them, the
    label in place of ``{}`` in ``template``.
    image, label: columns of the table.
    """

    looked_for = "rows with an image and its labels"

    def __init__(
        self,
        place: str,
        *,
        image: str | None = None,
        label: str | None = None,
        separator: str | None = None,
        template: str = "a photo of a {}",
    ):
        if "{}" not in template:
            raise DiptychError(f"labels:{place}: template '{template}' has no {{}} where the label goes")
        if separator == "":
            raise DiptychError(f"labels:{place}: separator is empty; leave it out, or give the mark between labels")
        self.image, self.label, self.separator, self.template = image, label, separator, template
        self._labels_of: dict[str, dict[str, None]] = {}  # of each image met, by id
        CellSource.__init__(self, place)
        for entry in self._entries:
            entry.extra["labels"] = list(self._labels_of[entry.id])
        self.labels = sorted({name for entry in self._entries for name in entry.extra["labels"]})
        self.classes = []  # an image has no one class
        self.fields = self._fields()
        del self._labels_of
        if not self.labels:
            raise DiptychError(f"labels:{place}: no image has a label; name their column with ?label=NAME")

    def entries(self) -> Iterator[Entry]:
        """Every image that the address names."""
        place = self._table() if files.is_directory(self.place) else self.place
        for entry, names in self._rows(place):
            self._labels_of.setdefault(entry.id, {}).update(dict.fromkeys(names))
            entry.captions = [self.caption(name) for name in names]
            yield entry

    def _table(self) -> str:
        """The table of labels at the top of the directory. DiptychError if there is none, or it has no column of labels."""
        name = next((name for name in METADATA if files.exists(files.join(self.place, name))), "")
        if not name:
            raise DiptychError(
                f"labels:{self.place}: no {', '.join(METADATA)} in it, which says what labels each image has; class folders are "
                f"read by classes:{self.place}"
            )
        url = files.join(self.place, name)
        columns = columns_of(url)
        if self.label is None and not {c.lower() for c in columns} & set(LABEL_COLUMNS):
            raise DiptychError(
                f"labels:{self.place}: {name} has no column of labels (of the usual names: {', '.join(LABEL_COLUMNS)}); columns: "
                f"{', '.join(columns)}; name yours with ?label=NAME"
            )
        return url

    def _parts(self, text: str, column: str) -> list[str]:
        """Any text may hold several."""
        return divided(text) if self.separator is None else text.split(self.separator)

    def has_content(self, entry: Entry) -> bool:
        """An image without a label is one, too."""
        return True
