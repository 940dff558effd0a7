"""What is wrong with a file is called by its name, with the remedy."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

import sources_fixture
from diptych.core.errors import DiptychError
from diptych.data.sources import open_source
from sources_fixture import picture, problems, put, tar_bytes

own_cache, root = sources_fixture.own_cache, sources_fixture.root  # pytest finds them here
pytestmark = pytest.mark.usefixtures("own_cache")


def shard(*names: str) -> bytes:
    return tar_bytes([(n, picture(i) if n.endswith("png") else f"caption of {n}") for i, n in enumerate(names)])


@pytest.mark.parametrize(("pack", "name"), [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz")])
def test_compressed_files_are_not_damaged(root: str, pack: Callable[[bytes], bytes], name: str) -> None:
    put(f"{root}/t.tar.gz", pack(shard("a.png", "a.txt")))
    with pytest.raises(DiptychError, match=f"compressed by {name}.*`{name} -d FILE`"):
        open_source(f"wds:{root}/t.tar.gz")
    put(f"{root}/t.csv", pack(b"image,caption\na.png,x\n"))
    for address in (f"csv:{root}/t.csv", f"jsonl:{root}/t.csv", f"coco:{root}/t.csv", f"classes:{root}/t.csv"):
        with pytest.raises(DiptychError, match=f"compressed by {name}: unpack it"):
            open_source(address)


def test_keys_with_dots(root: str) -> None:
    names = [f"sub/shot_2{i}.{j}.{end}" for i in range(2) for j in ("05", "10") for end in ("png", "txt")]
    source = open_source("wds:" + put(f"{root}/dots.tar", shard(*names)))
    assert [(s.id, s.captions) for s in (source[i] for i in range(4))] == [
        (f"dots.tar:sub/shot_2{i}.{j}", [f"caption of sub/shot_2{i}.{j}.txt"]) for i in range(2) for j in ("05", "10")
    ]
    assert source.problems == []


def test_further_members_of_a_key_stay_with_it(tmp_path: Path) -> None:
    """By WebDataset's rule, which holds wherever it gives an image: what follows the first dot is the kind of the member."""
    source = open_source(
        "wds:" + put(f"{tmp_path}/t.tar", shard("a.png", "a.txt", "a.depth.png", "b.left.png", "b.right.png", "b.txt"))
    )
    assert len(source) == 1 and source[0].id == "t.tar:a"
    assert "ends at the first dot" in problems(source)["t.tar:b"]
    source = open_source("wds:" + put(f"{tmp_path}/h.tar", shard("a.png", "a.txt", "b.heic", "b.txt")))
    assert "HEIC is not read: convert it" in problems(source)["h.tar:b"]


@pytest.mark.parametrize("scheme", ["csv", "jsonl", "coco", "karpathy", "llava"])
def test_a_spreadsheet_is_called_one(tmp_path: Path, scheme: str) -> None:
    put(f"{tmp_path}/t.xlsx", b"PK\x03\x04" + bytes(100))
    with pytest.raises(DiptychError, match=r"t\.xlsx: a spreadsheet .* save the sheet as \.csv"):
        open_source(f"{scheme}:{tmp_path}/t.xlsx")
