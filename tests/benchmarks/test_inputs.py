"""Files that users bring: every fault is named with its place, and nothing is dropped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from diptych.benchmarks import inputs
from diptych.benchmarks.inputs import read_json, read_npy, read_rows
from diptych.benchmarks.tables import match
from diptych.core.errors import DiptychError

ROWS = [{"id": 7, "score": 1.5}, {"id": "8", "score": None}]


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "lines.json", "array.json", "keyed.json", "a.csv", "a.tsv", "a.parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    lines = "\n".join(json.dumps(r) for r in ROWS) + "\n\n"
    table = "id,score\n7,1.5\n8,\n"
    if name == "a.parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"id": ["7", "8"], "score": [1.5, None]}), tmp_path / name)
    else:
        content = {"a.csv": table, "a.tsv": table.replace(",", "\t"), "array.json": json.dumps(ROWS, indent=1)}
        content |= {"keyed.json": json.dumps({"rows": ROWS})}
        write(tmp_path, name, content.get(name, lines))
    found = read_rows(tmp_path / name, key="rows")
    assert found.unique("id") == ["7", "8"]
    assert np.array(found.column("score", "score")).tolist() == pytest.approx([1.5, np.nan], nan_ok=True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "a.jsonl: the file is empty"),
        ("a.jsonl", b"\n \n", "a.jsonl: no rows"),
        ("a.jsonl", b'{"id": 1}\n{"id": \n', "a.jsonl, line 2, column 7: not JSON"),
        ("a.jsonl", b'{"id": 1}\n[2]\n', r"a.jsonl, line 2: expected an object, got \[2\]"),
        ("a.jsonl", b'{"id": 1}\n\n{"id": 1, "score": NaN}\n', "a.jsonl, line 3: NaN is not JSON; write null"),
        ("a.jsonl", b'{"id": 1}\n{"id": 2, "id": 3}\n', "a.jsonl, line 2: the key 'id' is twice in one object"),
        ("a.jsonl", b'\xef\xbb\xbf{"id": 1}\n', "a.jsonl, line 1: starts with a byte order mark"),
        ("a.jsonl", '{"id": 1}\n'.encode("utf-16"), "a.jsonl, line 1: UTF-16"),
        ("a.jsonl", '{"id": 1}\n{"id": "é"}\n'.encode("latin-1"), "a.jsonl, line 2: not UTF-8"),
        ("a.json", '[\n{"id": 1},\n{"id": "é"}]\n'.encode("latin-1"), "a.json, line 3: not UTF-8"),
        ("a.csv", ("id,score\n" + "7,1\n" * 5000 + "é,1\n").encode("latin-1"), "a.csv, line 5002: not UTF-8"),
        ("a.tsv", 'id\tscore\n"7\n8"\t1\n\né\t1\n'.encode("latin-1"), "a.tsv, line 5: not UTF-8"),
        ("a.json", b'[{"id": 1},\n{"id" 2}]', "a.json, line 2, column 7: not JSON"),
        ("a.json", b'[\n{"id": 1, "score": Infinity}]', "a.json, line 2: Infinity is not JSON"),
        ("a.json", b'{"row": []}', "a.json: expected a field 'rows'; did you mean 'row'"),
        ("a.json", b"[[1]]", r"a.json, \[0\]: expected an object"),
        ("a.json", b"3", "a.json: expected a list of rows"),
        ("a.json", b"[" * 100_000, "a.json, line 1: nested too deeply"),
        ("a.csv", b"id,score\n1,2\n3\n", "a.csv, line 3: 1 value for 2 columns"),
        ("a.csv", b"id,id\n1,2\n", "a.csv, line 1: a column name is twice in the header"),
        ("a.csv", 'id,t\n1,a\n2,é\n'.encode("latin-1"), "a.csv, line"),
        ("a.parquet", b"PAR1 no", "a.parquet: not Parquet"),
    ],
)  # fmt: skip
def test_a_broken_file_is_refused_with_its_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    write(tmp_path, name, content)
    with pytest.raises(DiptychError, match=message):
        read_rows(tmp_path / name, key="rows")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": 70, "score": NaN}', "line 71: NaN is not JSON"),
        ('{"id": 70, "id": 71}', "line 71: the key 'id' is twice in one object"),
        ('{"id": 70, "a": {"b": 1, "b": 2}}', "line 71: the key 'b' is twice in one object"),
        ('{"id": 70}, {"id": 71}', "line 71, column 11: not JSON"),
        ("[70]", "line 71: expected an object"),
        ('{"id": "é"}', "line 71: not UTF-8"),
    ],
)
def test_a_fault_deep_in_the_file_is_found(tmp_path: Path, line: str, message: str) -> None:
    """Lines are read many at a time where all is well."""
    lines = [json.dumps({"id": i, "text": "12:30"[i % 5 :]}) for i in range(200)]
    assert len(read_rows(write(tmp_path, "a.jsonl", "\n".join(lines)))) == 200
    lines[70] = line
    with pytest.raises(DiptychError, match=f"a.jsonl, {message}"):
        read_rows(write(tmp_path, "a.jsonl", "\n".join(lines).encode("latin-1")))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    for read in (read_rows, read_json, lambda p: read_npy(p, 2)):
        with pytest.raises(DiptychError, match="no such file"):
            read(tmp_path / "nothing.json")


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_an_endless_line_is_refused_before_it_fills_the_memory(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "LONGEST_LINE", 1 << 16)
    write(tmp_path, name, b'{"id": 1}\n"' + b"x" * (1 << 18))
    with pytest.raises(DiptychError, match=f"{name}, line 2: longer than"):
        read_rows(tmp_path / name)


def test_a_huge_document_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "LARGEST_JSON", 100)
    with pytest.raises(DiptychError, match="a.json, line 1: .* in one JSON document"):
        read_json(write(tmp_path, "a.json", "[" + "1," * 100 + "1]"))


@pytest.mark.slow
def test_a_line_of_a_gigabyte(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"id": 1}\n')
        file.truncate(1 << 30)
    with pytest.raises(DiptychError, match="line 2: longer than 64 MiB"):
        read_rows(path)


@pytest.mark.parametrize(
    ("row", "kind", "message"),
    [
        ({"ids": 1}, "id", "line 2: no field 'id'; did you mean 'ids'"),
        ({"id": True}, "id", r"line 2: 'id' must be an id .*, got True"),
        ({"id": ""}, "id", "must be an id"),
        ({"id": 1.5}, "id", "must be an id"),
        ({"id": "x"}, "number", "must be a number, got 'x'"),
        ({"id": None}, "number", "must be a number, got None"),
        ({"id": "nan"}, "score", "must be a finite number"),
        ({"id": 2}, "truth", r"a credit in \[0, 1\]"),
        ({"id": 2}, "text", "must be a text"),
        ({"id": [1]}, "texts", "must be a text"),
        ({"id": "a"}, "list", "must be a list"),
    ],
)
def test_a_wrong_field_is_refused_with_its_line(tmp_path: Path, row: dict, kind: str, message: str) -> None:
    first = {"id": {"id": 1, "number": 1, "score": 1, "truth": 1, "text": "a", "texts": ["a"], "list": [1]}[kind]}
    table = read_rows(write(tmp_path, "a.jsonl", f"{json.dumps(first)}\n{json.dumps(row)}\n"))
    with pytest.raises(DiptychError, match=message):
        table.column("id", kind)


def test_an_id_twice_is_refused_with_both_places(tmp_path: Path) -> None:
    table = read_rows(write(tmp_path, "a.jsonl", '{"id": 1}\n{"id": 2}\n{"id": "1"}\n'))
    with pytest.raises(DiptychError, match="line 3: id '1' again; it is also at .*line 1"):
        table.unique("id")


def test_ids_must_match_both_ways(tmp_path: Path) -> None:
    table = read_rows(write(tmp_path, "a.jsonl", '{"id": 1}\n{"id": 2}\n'))
    other = Path("truth.json")
    match(["1", "2"], ["2", "1"], table, other)
    with pytest.raises(DiptychError, match="1 of the 3 ids are in truth.json but not in .*a.jsonl: 3"):
        match(["1", "2"], ["1", "2", "3"], table, other)
    with pytest.raises(DiptychError, match="line 2: 1 of the 2 ids are in .*a.jsonl but not in truth.json: 2"):
        match(["1", "2"], ["1"], table, other)


def test_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.eye(3))
    assert read_npy(tmp_path / "a.npy", 2).shape == (3, 3)
    with pytest.raises(DiptychError, match="expected numbers in 1 dimensions"):
        read_npy(tmp_path / "a.npy", 1)
    np.save(tmp_path / "o.npy", np.array([{}, None]), allow_pickle=True)
    for name in ("o.npy", "t.npy"):
        write(tmp_path, "t.npy", b"text")
        with pytest.raises(DiptychError, match="not a .npy array"):
            read_npy(tmp_path / name, 2)
