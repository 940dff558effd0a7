"""``regions:``: a table of boxes, points and phrases, as of Flickr30k Entities, RefCOCO, GRIT or pointing data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diptych.core.errors import DiptychError
from diptych.core.sample import Region
from diptych.data.regions.conventions import Convention, convention
from diptych.data.source import Problem
from diptych.data.sources.base import CAPTION_COLUMNS, IMAGE_COLUMNS, Entry, column, texts
from diptych.data.sources.grounded.regions import PHRASES, region_of
from diptych.data.sources.parquet import CellSource, parquet_entries
from diptych.data.sources.table import read_json, read_jsonl
from diptych.data.storage import files

GRIT = ("ref_exps", "noun_chunks")  # lists of [start, end, left, top, right, bottom, score] of the caption (Kosmos-2's GRIT)
KEYS = ("box", "bbox", "point", "segmentation", "negatives", *PHRASES)  # of a row that is one region
ANSWERS = ("answer", "captions", "sentences", *PHRASES, "caption")  # columns of phrases in Parquet


class RegionTable(CellSource):
    """A .jsonl, .json (a list of rows) or .parquet (globs allowed) with rows ``{image, regions: [{box or bbox, phrase}],
    caption}``, or rows that hold one ``box`` or ``bbox`` and a ``phrase``.

    box: left, top, right, bottom; bbox: left, top, width, height; in pixels, unless ``?convention=`` says otherwise
    (``data.regions.conventions``). A region may have ``point`` (or be one alone), ``segmentation`` (read with ``?masks=true``) and
    ``negatives``; ``points: [{x, y}]`` in a row with ``label`` are regions of one point each (PixMo-Points:
    ``convention=xyxy/100``). Rows of GRIT have ``caption`` and ``ref_exps`` or ``noun_chunks``, of which boxes are shares.
    box, phrase: columns of a Parquet file with one box a row and any number of phrases for it.

    Rows of the same image are one sample; captions may be missing. Paths are relative to ``?images=DIR``, else to the file. Boxes
    that cannot be used are problems.
    """

    looked_for = "rows with an image and regions"

    def __init__(
        self,
        place: str,
        *,
        images: str | None = None,
        image: str | None = None,
        convention: str | None = None,
        masks: bool = False,
        box: str | None = None,
        phrase: str | None = None,
    ):
        self.images, self.image, self.masks, self.box, self.phrase = images, image, masks, box, phrase
        self.declared = None if convention is None else declared_of(convention, place)
        super().__init__(place)

    def entries(self) -> Iterator[Entry]:
        """Every image that the address names."""
        if self.place.lower().endswith(".parquet") or files.is_directory(self.place):
            yield from self._of_parquet()
            return
        urls = files.matching(self.place)
        directories = [files.directory_of(url, self.images) for url in urls]
        prefixes = files.prefixes(urls)
        for url, directory, prefix in zip(urls, directories, prefixes, strict=True):
            own = prefix if len(set(directories)) > 1 else ""  # in one directory, equal paths are the same image
            columns, rows = read_json(url) if url.lower().endswith(".json") else read_jsonl(url)
            image = column(columns, IMAGE_COLUMNS, self.image, "image", url)
            caption = next((c for c in CAPTION_COLUMNS if c in columns), "")
            for line, row in rows:
                path = row.pop(image, None)
                item = f"{prefix}{files.name(url)}:{line}"
                if not isinstance(path, str) or not path.strip():
                    self.problems.append(Problem(item, f"no path in column '{image}'"))
                    continue
                regions = self._regions(item, row, caption)
                fields = {"regions": regions} if regions else {}
                try:
                    captions = texts(row.pop(caption, None))
                except ValueError as error:
                    self.problems.append(Problem(item, str(error)))
                    captions = []
                where = files.join(directory, path.strip())
                yield Entry(files.named(path, own, url), where, captions, row, fields=fields)

    def _of_parquet(self) -> Iterator[Entry]:
        """Rows of Parquet: what would be captions are the phrases of the row's box, or of its list ``regions``."""
        words = ("phrase", ANSWERS)
        for entry in parquet_entries(self.place, self.problems, self.image, self.phrase, words):
            row, phrases = entry.extra, list(entry.captions)
            if any(isinstance(row.get(key), list) for key in GRIT):
                given = of_caption(row, phrases[0] if phrases else None)
                if found := self._all_of(entry.id, given, (None, None), Convention("xyxy", 1)):
                    entry.fields = {"regions": found}
                yield entry
                continue
            key = self.box or next((k for k in ("box", "bbox") if row.get(k) is not None), "bbox")
            box = row.pop(key, None)
            entry.captions = []
            shape = {"segmentation": as_parts(row.pop("segmentation", None))} if self.masks else {}
            name = "box" if self.declared is None and key != "bbox" else "bbox"
            given = [{name: box, "phrase": phrase, **shape} for phrase in phrases]
            size = row.get("width"), row.get("height")
            if found := self._all_of(entry.id, given, size):
                entry.fields = {"regions": found}
                yield entry

    def _regions(self, item: str, row: dict[str, Any], caption: str) -> list[Region]:
        size = row.get("width"), row.get("height")
        if any(isinstance(row.get(key), list) for key in GRIT):
            return self._all_of(item, of_caption(row, row.get(caption)), size, Convention("xyxy", 1))
        given = row.pop("regions", None)
        if given is None and isinstance(row.get("points"), list):
            name = {key: row[key] for key in PHRASES if key in row}
            given = [{"point": point, **name} for point in row.pop("points")]
        if given is None:  # one region per row
            given = [{k: row.pop(k) for k in KEYS if k in row}]
        return self._all_of(item, given if isinstance(given, list) else [given], size)

    def _all_of(self, item: str, given: Sequence[Any], size: tuple[Any, Any], how: Convention | None = None) -> list[Region]:
        regions = []
        for number, region in enumerate(given):
            try:
                regions.append(region_of(region, size, masks=self.masks, declared=how or self.declared))
            except ValueError as error:
                self.problems.append(Problem(f"{item}, region {number + 1}", str(error)))
        return regions


def declared_of(text: str, place: str) -> Convention:
    """The convention of an address. DiptychError for an unknown one."""
    return convention(text, f"{place}: convention")


def of_caption(row: dict[str, Any], caption: Any) -> list[Any]:
    """Regions of GRIT's lists: each names a part of the caption by its first letter and the letter after its last."""
    if not isinstance(caption, str):
        raise DiptychError("GRIT: a row with ref_exps or noun_chunks has no caption as a text")
    found: dict[tuple[Any, ...], Any] = {}
    for key in GRIT:
        for entry in row.pop(key, None) or []:
            if not isinstance(entry, list) or len(entry) < 6 or not all(isinstance(n, (int, float)) for n in entry[:6]):
                found[key, len(found)] = entry
                continue
            start, end, *box = entry[:6]
            found.setdefault((int(start), int(end), *box), {"box": box, "phrase": caption[int(start) : int(end)]})
    return list(found.values())


def as_parts(segmentation: Any) -> Any:
    """A segmentation as COCO writes it: tables may hold one polygon as a flat list."""
    flat = isinstance(segmentation, list) and segmentation and not isinstance(segmentation[0], (list, Mapping))
    return [segmentation] if flat else segmentation
