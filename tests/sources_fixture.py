"""The same three pictures with captions in every format, and what their tests share."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diptych.data.source import Source

NAMES = ["a.png", "sub/bär.jpg", "c 3.png"]
CAPTIONS = [["a red square", "red"], ["ein grüner Bär 🐻"], ["a blue, 'quoted' thing"]]


def picture(seed: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    colour = tuple(int(c) for c in np.random.default_rng(seed).integers(0, 256, 3))
    Image.new("RGB", (12, 8), colour).save(file, kind)
    return file.getvalue()


PICTURES = [picture(i, "JPEG" if name.endswith("jpg") else "PNG") for i, name in enumerate(NAMES)]


def put(url: str, content: bytes | str) -> str:
    """Writes a file; a text in UTF-8."""
    with fsspec.open(url, "wb", auto_mkdir=True) as file:
        file.write(content if isinstance(content, bytes) else content.encode())
    return url


def put_images(root: str) -> None:
    for name, data in zip(NAMES, PICTURES, strict=True):
        put(f"{root}/{name}", data)


def make_folder_txt(root: str) -> str:
    put_images(root)
    for name, captions in zip(NAMES, CAPTIONS, strict=True):
        put(f"{root}/{name.rpartition('.')[0]}.txt", "\n".join(captions))
    return f"folder:{root}"


def make_folder_json(root: str) -> str:
    put_images(root)
    for name, captions in zip(NAMES, CAPTIONS, strict=True):
        put(f"{root}/{name.rpartition('.')[0]}.json", json.dumps({"captions": captions, "colour": 7}))
    return f"folder:{root}/"


def make_folder_jsonl(root: str) -> str:
    put_images(root)
    rows = [{"image": n, "captions": c} for n, c in zip(NAMES, CAPTIONS, strict=True)]
    put(f"{root}/captions.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    return f"folder:{root}"


def make_folder_metadata(root: str) -> str:
    put(f"{root}/metadata.csv", table_text("file_name", "text"))
    put_images(root)
    return f"folder:{root}"


def table_text(image: str = "image", caption: str = "caption", **dialect) -> str:
    file = io.StringIO()
    writer = csv.writer(file, **dialect)
    writer.writerow([image, caption])
    writer.writerows([name, c] for name, captions in zip(NAMES, CAPTIONS, strict=True) for c in captions)
    return file.getvalue()


def make_csv(root: str) -> str:
    put_images(root)
    return "csv:" + put(f"{root}/table.csv", table_text())


def make_tsv(root: str) -> str:
    put_images(root)
    return "tsv:" + put(f"{root}/table.tsv", table_text(delimiter="\t"))


def make_jsonl(root: str) -> str:
    make_folder_jsonl(root)
    return f"jsonl:{root}/captions.jsonl"


def put_parquet(url: str, columns: dict, **options) -> str:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, **options)
    return put(url, file.getvalue())


def make_parquet_bytes(root: str) -> str:
    return "parquet:" + put_parquet(f"{root}/t.parquet", {"image": PICTURES, "caption": CAPTIONS}, row_group_size=1)


def make_parquet_hf(root: str) -> str:
    images = [{"bytes": PICTURES[0], "path": NAMES[0]}, {"bytes": None, "path": NAMES[1]}, {"bytes": PICTURES[2]}]
    put_images(root)
    put_parquet(f"{root}/train-0.parquet", {"image": images[:2], "text": CAPTIONS[:2]})
    put_parquet(f"{root}/train-1.parquet", {"image": images[2:], "text": [CAPTIONS[2]]})
    return f"parquet:{root}/train-*.parquet"


def make_parquet_paths(root: str) -> str:
    put_images(root)
    flat = [(n, c) for n, cs in zip(NAMES, CAPTIONS, strict=True) for c in cs]
    names, captions = zip(*flat, strict=True)
    return "parquet:" + put_parquet(f"{root}/t.parquet", {"file_name": names, "caption": captions})


def make_coco(root: str) -> str:
    put_images(f"{root}/images")
    content = {
        "images": [{"id": i, "file_name": n, "width": 12} for i, n in enumerate(NAMES)],
        "annotations": [{"image_id": i, "caption": c} for i, cs in enumerate(CAPTIONS) for c in cs],
    }
    return "coco:" + put(f"{root}/captions.json", json.dumps(content))


def tar_bytes(members: list[tuple[str, bytes | str]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members:
            data = content if isinstance(content, bytes) else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def make_wds(root: str) -> str:
    for i, (name, data, captions) in enumerate(zip(NAMES, PICTURES, CAPTIONS, strict=True)):
        stem, _, kind = name.rpartition(".")
        put(f"{root}/{i:03d}.tar", tar_bytes([(f"{stem}.{kind}", data), (f"{stem}.txt", "\n".join(captions))]))
    return f"wds:{root}/{{000..002}}.tar"


MAKERS = [value for name, value in sorted(globals().items()) if name.startswith("make_")]


def problems(source: Source) -> dict[str, str]:
    return {p.item: p.reason for p in source.problems}


@pytest.fixture
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else "memory://bucket/data"
