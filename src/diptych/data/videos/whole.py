"""Whether a video file was cut off, from the sizes that its container states: MP4 and MOV, AVI, Matroska and WebM."""

from __future__ import annotations

import struct
from typing import Any, BinaryIO

_EBML, _SEGMENT = 0x1A45DFA3, 0x18538067
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")


def missing_bytes(file: str | BinaryIO) -> int:
    """How many bytes of a file are missing at its end; 0 if none are, or if its container states no size."""
    if isinstance(file, str):
        with open(file, "rb") as opened:
            return missing_bytes(opened)
    length = file.seek(0, 2)
    head = _at(file, 0, 12)
    if head[:4] == b"RIFF":
        return max(0, 8 + int(struct.unpack("<I", head[4:8])[0]) - length)
    if head[4:8] in _BOXES:
        return _boxes(file, length)
    if head[:4] == _EBML.to_bytes(4, "big"):
        return _segment(file, length)
    return 0


def _at(file: Any, where: int, count: int) -> bytes:
    file.seek(where)
    data: bytes = file.read(count)
    return data


def _boxes(file: Any, length: int) -> int:
    where = 0
    while where + 8 <= length:
        size, name = struct.unpack(">I4s", _at(file, where, 8))
        if not name.isalnum():  # what follows is no box
            return 0
        if size == 1 and where + 16 <= length:
            size = struct.unpack(">Q", _at(file, where + 8, 8))[0]
        if size < 8:  # 0: up to the end of the file
            return 0
        where += size
    return max(0, where - length)


def _segment(file: Any, length: int) -> int:
    size, after = _number(file, 4)
    start = after + size  # of the segment, after the header
    if int.from_bytes(_at(file, start, 4), "big") != _SEGMENT:
        return 0
    size, after = _number(file, start + 4)
    return 0 if size < 0 else max(0, after + size - length)


def _number(file: Any, where: int) -> tuple[int, int]:
    """A length as Matroska writes it, −1 if it is not known, and where what follows begins."""
    data = _at(file, where, 8)
    if not data or not data[0]:
        return -1, where + 1
    width = 9 - data[0].bit_length()
    value = int.from_bytes(data[:width], "big") - (1 << (7 * width))
    return (-1 if value == (1 << (7 * width)) - 1 else value), where + width
