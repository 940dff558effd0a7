"""From an address to a ``Source``: ``scheme:place?option=value``.

| address | data |
|---|---|
| ``scenes:…`` | the built-in world: images; ``scenes:clips``: clips; ``scenes:albums``: documents; ``scenes:text``: print |
| ``folder:photos/`` | images with .txt or .json next to them, or one ``captions.jsonl``/``metadata.csv`` |
| ``csv:table.csv?image=file&caption=text`` | a table (.csv, .tsv) with image paths and captions; ``jsonl:`` likewise |
| ``parquet:data/*.parquet`` | image bytes or paths and captions |
| ``coco:captions.json?images=DIR`` | COCO captions |
| ``coco:instances.json``, ``coco:captions.json?instances=instances.json`` | COCO boxes with category names |
| ``regions:FILE.jsonl?images=DIR&convention=xyxy/1000`` | boxes, points and phrases in rows: .jsonl, .json, .parquet, GRIT |
| ``panoptic:panoptic_val2017.json`` | COCO panoptic: a region with its mask for each segment |
| ``genome:region_descriptions.json?images=DIR`` | Visual Genome: regions, objects, attributes or relationships |
| ``refcoco:refs(unc).p?instances=instances.json&images=DIR&split=testA`` | RefCOCO, RefCOCO+, RefCOCOg |
| ``entities:flickr30k_entities?images=DIR`` | Flickr30k Entities: captions and the boxes of their phrases |
| ``dci:complete?images=DIR`` | Densely Captioned Images: a description, its summaries and wrong versions for each part |
| ``classes:my/parts``, ``classes:table.csv?image=file&label=species`` | images in class folders, or a table of classes |
| ``labels:table.csv?label=tags``, ``labels:my/folder`` | a table of images with any number of labels each |
| ``video:clips/`` | video files, animated pictures or folders of frames, with captions as for ``folder:`` |
| ``video:msrvtt.json?videos=DIR`` | clips that a file describes: COCO-like, MSR-VTT, ActivityNet, LLaVA, WebVid, rows |
| ``documents:FILE.jsonl?images=DIR``, ``documents:notes/`` | texts and images in order (OBELICS, MMC4), or Markdown |
| ``karpathy:dataset_flickr30k.json?images=DIR`` | Karpathy's JSON of Flickr8k, Flickr30k, COCO, with its splits |
| ``llava:FILE.json?images=DIR`` | conversations about images in LLaVA's JSON |
| ``chat:FILE.jsonl?images=DIR`` | conversations in a table (.jsonl, .parquet) with a column ``messages`` |
| ``wds:shards/{000..031}.tar`` | WebDataset shards |
| ``packed:DIRECTORY`` | what ``diptych data pack`` wrote |
| ``openmoji:all`` | 1,900 drawings with their names, packaged: small, real, without a download |
| ``mix:0.7*coco:a.json+0.3*packed:b`` | several sources, drawn by weight |
| ``repeated:scenes:small?items=100&share=0.5`` | some of its samples repeated many times among new ones |
| ``control:scenes:small?shuffle=text`` | one field of another sample, or blank (``blank=image``) |
| ``shots:classes:my/parts?shots=16&seed=0`` | a few pictures of each class, for adapting a model |
| ``pages:all``, ``pages:ocr,table?ask=3`` | rendered pages with known trees, and tasks on them |
| ``facts:scenes:small?repeat=2`` | facts and captions of scenes in words, without pictures, for language models |
| ``preferences:scenes:small``, ``preferences:FILE.jsonl?images=DIR`` | a question with a right and a wrong answer |
| ``instruct:scenes:small?kinds=count,refuse`` | conversations about scenes with exact truth, of chosen kinds |
| ``twins:scenes:small`` | two pictures, and whether they show the same |
| ``stills:scenes:small?n=4`` | clips made of stills: several pairs one after the other |
| ``joined:scenes:clips?n=3`` | long clips made of several, one after the other |
| ``index:my.index``, ``index:my.index?selection=NAME`` | the pictures of an index, or a selection of them (``diptych index``) |
| ``mypackage.sources:MySource:REST`` | ``MySource(REST)``, your own class |

A place is a local path or any fsspec URL; copies of remote files are kept in the user's cache (``cache.py``). Every address takes
``?split=train|validation|test``. A bare path to a directory, .csv, .tsv, .jsonl, .parquet, .tar or .json is understood; what a
.json holds (COCO, Karpathy's, conversations, rows) is read from its beginning.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl

from diptych.core.errors import DiptychError, nearest
from diptych.data.source import Source

SCHEMES = {
    "folder": "diptych.data.sources.folder:Folder",
    "csv": "diptych.data.sources.table:Table",
    "tsv": "diptych.data.sources.table:Table",
    "jsonl": "diptych.data.sources.table:Table",
    "parquet": "diptych.data.sources.parquet:Parquet",
    "coco": "diptych.data.sources.coco:Coco",
    "regions": "diptych.data.sources.grounded.table:RegionTable",
    "panoptic": "diptych.data.sources.grounded.panoptic:Panoptic",
    "genome": "diptych.data.sources.grounded.genome:Genome",
    "refcoco": "diptych.data.sources.grounded.refs:Refs",
    "entities": "diptych.data.sources.grounded.entities:Entities",
    "dci": "diptych.data.sources.grounded.dci:Dci",
    "classes": "diptych.data.sources.classes:Classes",
    "labels": "diptych.data.sources.classes:Labels",
    "video": "diptych.data.sources.video:Video",
    "documents": "diptych.data.sources.documents:Documents",
    "karpathy": "diptych.data.sources.karpathy:Karpathy",
    "llava": "diptych.data.sources.llava:Conversations",
    "chat": "diptych.data.sources.llava:Conversations",
    "wds": "diptych.data.sources.wds:Wds",
    "packed": "diptych.data.sources.packed:Packed",
    "openmoji": "diptych.data.sources.openmoji:OpenMoji",
    "repeated": "diptych.data.sources.repeated:Repeated",
    "control": "diptych.data.control:Control",
    "shots": "diptych.data.subsets.shots:Shots",
    "facts": "diptych.data.scenes.facts:Facts",
    "preferences": "diptych.data.preferences.source:open_preferences",
    "instruct": "diptych.data.scenes.instruct.source:Instructions",
    "pages": "diptych.data.pages:Pages",
    "twins": "diptych.data.preferences.twins:Twins",
    "stills": "diptych.data.subsets.stills:Stills",
    "joined": "diptych.data.subsets.joined:Joined",
    "index": "diptych.index.source:IndexSource",
}
ENDINGS = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".tar": "wds"}
ENDINGS[".json"] = "coco"  # or what its beginning shows
REMEDIES = {
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "a spreadsheet is not read: save the sheet as .csv"),
    **dict.fromkeys((".gz", ".tgz", ".bz2", ".xz", ".zst"), "compressed: unpack it first, such as by `gzip -d FILE`"),
    **dict.fromkeys((".zip", ".rar", ".7z"), "an archive is not read: unpack it, and give the folder"),
}
_OWN = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*:[A-Za-z_]\w*)(?::(.*))?", re.DOTALL)


def open_source(address: str) -> Source:
    """The source at ``address``. DiptychError names what is wrong with it and the remedy."""
    scheme, mark, rest = address.partition(":")
    if scheme == "scenes" and mark:
        from diptych.data.scenes import open_scenes

        return open_scenes(address)
    if scheme == "mix" and mark:
        from diptych.data.sources.mixture import open_mixture

        return open_mixture(address)
    if mark and scheme in SCHEMES:
        return _open(SCHEMES[scheme], rest, address)
    bare = _scheme_of_path(address)
    if bare:
        return _open(SCHEMES[bare], address, address)
    own = _OWN.fullmatch(address)
    if own and not rest.startswith("//") and ("." in scheme or own[2] is not None):
        return _open(own[1], own[2] or "", address)
    known = ["scenes", *SCHEMES, "mix"]
    close = nearest(scheme, known) if mark else "; is the path right?"
    raise DiptychError(
        f"cannot open '{address}'{close}; known: {', '.join(k + ':' for k in known)}, package.module:Class:REST, "
        f"or a path to a directory or a {' '.join(ENDINGS)} file"
    )


def _scheme_of_path(address: str) -> str | None:
    from diptych.data.storage import files

    path = files.normal(address.partition("?")[0])
    ending = next((e for e in ENDINGS if path.lower().endswith(e)), None)
    if ending and (not re.match(r"[\w.]+:(?!//)", path) or files.exists(path)):
        return _scheme_of_json(path) if ending == ".json" else ENDINGS[ending]
    if files.is_local(path) and (remedy := next((r for e, r in REMEDIES.items() if path.lower().endswith(e)), "")):
        raise DiptychError(f"{path}: {remedy}" if files.exists(path) else f"{path}: there is no such file")
    if not files.is_local(path) or files.is_directory(path):
        return (
            "packed"
            if files.is_local(path) and all(files.exists(files.join(path, f)) for f in ("manifest.json", "shard-00000.arrow"))
            else "folder"
        )
    return None


def _scheme_of_json(path: str) -> str:
    """What a .json holds, from its beginning; COCO's if it cannot be read, which ``coco:`` then reports."""
    from diptych.data.sources.table import HEAD, scheme_of_json
    from diptych.data.storage import files

    try:
        head = files.read(path, 0, HEAD)
    except Exception:  # remote file systems raise errors of their own
        return "coco"
    return scheme_of_json(head.decode("utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig", "ignore"))


def _open(kind: str, rest: str, address: str) -> Source:
    from diptych.core.registry import check_options, option_names, resolve

    make = resolve(kind, {}, "source")
    place, options = _options(rest, {"split", *option_names(make)})
    part = options.pop("split", None)
    if not place and kind in SCHEMES.values():
        raise DiptychError(f"'{address}' has no place; expected {address.partition(':')[0]}:PATH")
    source: Any = make(place, **check_options(make, options, address))
    if not isinstance(source, Source):
        needs = ("address", "problems", "__len__", "__getitem__", "fingerprint", "split")
        lacks = [name for name in needs if not hasattr(source, name)]
        raise DiptychError(f"'{address}': {type(source).__name__} is not a Source: it does not have {', '.join(lacks)}")
    source.address = _without_split(address) if part else address
    return source.split(part) if part else source


def _without_split(address: str) -> str:
    place, _, query = address.partition("?")
    kept = "&".join(option for option in query.split("&") if not option.startswith("split="))
    return f"{place}?{kept}" if kept else place


def _options(rest: str, known: set[str]) -> tuple[str, dict[str, str]]:
    """``place?key=value&…`` → place and options. The query of a web address stays with it unless it holds options."""
    place, mark, query = rest.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if place.startswith(("http://", "https://")) and not known & set(options):
        return place + mark + query, {}
    return place, options
