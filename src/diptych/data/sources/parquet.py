"""``parquet:``: columns of image bytes or paths, and of captions; also what Hugging Face's ``datasets`` writes."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from diptych.core.errors import DiptychError
from diptych.data.source import Problem
from diptych.data.sources.base import IMAGE_COLUMNS, Entry, ListedSource, column, split_key, texts, word_column
from diptych.data.sources.table import CAPTION
from diptych.data.storage import files

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

HELD_BYTES = 512_000_000  # image columns of this size stay in memory, at least one row group


class CellSource(ListedSource):
    """A source of images in cells of Parquet files. They are read a row group at a time; ``HELD_BYTES`` of them stay in memory.

    The ``where`` of such an entry is (URL, row group, row in it, column).
    """

    def __init__(self, place: str):
        self._held: OrderedDict[tuple[str, int], pa.ChunkedArray] = OrderedDict()
        self._lock = threading.Lock()
        super().__init__(place)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_held", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _held=OrderedDict(), _lock=threading.Lock())

    def read(self, entry: Entry) -> bytes:
        """The image's bytes, still encoded."""
        if isinstance(entry.where, str):
            return super().read(entry)
        url, group, i, image = entry.where
        value = self._column(url, group, image)[i].as_py()
        if isinstance(value, dict):
            if value.get("bytes") is None and value.get("path"):
                return files.read(files.join(files.parent(url), value["path"]))
            value = value.get("bytes")
        if value is None:
            raise ValueError("the row holds no image")
        data: bytes = value
        return data

    def _column(self, url: str, group: int, image: str) -> pa.ChunkedArray:
        with self._lock:  # otherwise every thread of a pool would read the same row group
            if (url, group) not in self._held:
                with files.open_file(url) as file:  # opened anew: an open file must not be shared with forked workers
                    self._held[url, group] = open_parquet(file, url).read_row_group(group, columns=[image])[image]
                while len(self._held) > 1 and sum(c.nbytes for c in self._held.values()) > HELD_BYTES:
                    self._held.popitem(last=False)
            self._held.move_to_end((url, group))
            return self._held[url, group]


class Parquet(CellSource):
    """Images as bytes, as ``{bytes, path}``, or as paths relative to the file; captions as a text or a list of texts.

    Captions are kept in memory; images are read a row group at a time. Random access over more than
    ``HELD_BYTES`` re-reads row groups, so pack large sets, or keep row groups small.
    """

    looked_for = "rows with an image and a caption"

    def __init__(self, place: str, *, image: str | None = None, caption: str | None = None):
        self.image, self.caption = image, caption
        super().__init__(place)

    def entries(self) -> Iterator[Entry]:
        """Every image that the address names."""
        return parquet_entries(self.place, self.problems, self.image, self.caption)


def parquet_entries(
    place: str,
    problems: list[Problem],
    image: str | None = None,
    caption: str | None = None,
    words: tuple[str, tuple[str, ...]] = CAPTION,
) -> Iterator[Entry]:
    """An entry for each row of the files of a place; arguments as for ``table_entries``.

    Where images are bytes, entries are for a ``CellSource``. Numbers of a column of ``ClassLabel`` become its names.
    """
    urls = files.matching(f"{place.rstrip('/')}/*.parquet" if files.is_directory(place) else place)
    files_of = zip(urls, files.relative(urls), files.prefixes(urls), files.stamps(urls).values(), strict=True)
    for url, name, prefix, stamp in files_of:
        with files.open_file(url) as file:
            parquet = open_parquet(file, url)
            names = parquet.schema_arrow.names
            likely = [
                field.name for field in parquet.schema_arrow if _holds_images(field.type)
            ]  # not a number that is called image
            usual = likely if image is None and any(n.lower() in IMAGE_COLUMNS for n in likely) else names
            chosen = column(usual, IMAGE_COLUMNS, image, "image", url), word_column(names, words, caption, url)
            yield from _rows(url, name, prefix, stamp or "", parquet, *chosen, problems, words[0] != CAPTION[0])


def _rows(
    url: str,
    name: str,
    prefix: str,
    stamp: str,
    parquet: pq.ParquetFile,
    image: str,
    caption: str,
    problems: list[Problem],
    labels: bool,
) -> Iterator[Entry]:
    import pyarrow.types as kinds

    schema = parquet.schema_arrow
    kind = schema.field(image).type
    as_path = kinds.is_string(kind) or kinds.is_large_string(kind)
    if not _holds_images(kind):
        raise DiptychError(f"{url}: column '{image}' holds {kind}; expected bytes, {{bytes, path}} or paths")
    caption, key = split_key(schema.names, caption)
    light = [f.name for f in schema if f.name != image and "binary" not in str(f.type)]
    if caption not in light:
        raise DiptychError(f"{url}: column '{caption}' holds {schema.field(caption).type}; expected texts, or name another column")
    names, number = class_names(schema, caption), 0
    for group in range(parquet.num_row_groups):
        with readable(url):
            rows = parquet.read_row_group(group, columns=[*light, image] if as_path else light).to_pylist()
        for i, row in enumerate(rows):
            text, item, path = row.pop(caption), f"{name}:{number}", row.pop(image, None)
            number += 1
            try:
                known = names[text] if names and isinstance(text, int) and 0 <= text < len(names) else text
                captions = texts(known, key, names=labels)
            except ValueError as error:
                problems.append(Problem(item, str(error)))
                continue
            if not as_path:
                where = (url, group, i, image)
                yield Entry(item, where, captions, row, f"{stamp}:{where[1:]}" if stamp else "")
            elif path and path.strip():
                path = files.slashed(path, files.parent(url))
                yield Entry(files.named(path, prefix, url), files.join(files.parent(url), path.strip()), captions, row)
            else:
                problems.append(Problem(item, f"no path in column '{image}'"))


def _holds_images(kind: pa.DataType) -> bool:
    """Whether values of this type can be images: paths, bytes or ``{bytes, path}``."""
    import pyarrow.types as kinds

    tests = (kinds.is_string, kinds.is_large_string, kinds.is_binary, kinds.is_large_binary, kinds.is_struct)
    return any(test(kind) for test in tests)


def class_names(schema: pa.Schema, name: str) -> list[str]:
    """The names behind the numbers of a column that Hugging Face's ``datasets`` wrote as ``ClassLabel``; else none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return list(map(str, features[name]["names"]))
    except (KeyError, TypeError, ValueError):
        return []


def open_parquet(file: Any, url: str) -> pq.ParquetFile:
    """A Parquet file at a path or URL. DiptychError if it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise DiptychError(f"{url}: not a Parquet file: {error}") from error


def parquet_rows(url: str) -> list[dict[str, Any]]:
    """All rows of a Parquet file as plain data, in memory. DiptychError if it is none, or is damaged."""
    with files.open_file(url) as file:
        parquet = open_parquet(file, url)
        with readable(url):
            rows: list[dict[str, Any]] = parquet.read().to_pylist()
    return rows


@contextmanager
def readable(url: str) -> Iterator[None]:
    """Reading rows of a Parquet file within this raises DiptychError if the file is damaged."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise DiptychError(f"{url}: damaged Parquet file: {reason}; copy or write it again") from error
