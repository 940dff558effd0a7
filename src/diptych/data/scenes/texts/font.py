"""A bitmap font drawn for this project: capitals, digits and some signs, each five dots wide and seven high.

Lower-case letters are printed as capitals. At any height in pixels a dot covers the share of each pixel that lies under it, so
small print is grey rather than jagged.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

DOTS = 7  # rows of a letter
_ADVANCE = 6  # columns from one letter to the next
# Seven rows of five dots for each sign, a row as two hexadecimal digits (bit 4 is the leftmost dot).
_TABLE = """
A 0E1111111F1111  B 1E11111E11111E  C 0E11101010110E  D 1E11111111111E  E 1F10101E10101F  F 1F10101E101010
G 0E11101711110F  H 1111111F111111  I 0E04040404040E  J 0702020202120C  K 11121418141211  L 1010101010101F
M 111B1515111111  N 11111915131111  O 0E11111111110E  P 1E11111E101010  Q 0E11111115120D  R 1E11111E141211
S 0F10100E01011E  T 1F040404040404  U 1111111111110E  V 11111111110A04  W 1111111515150A  X 11110A040A1111
Y 11110A04040404  Z 1F01020408101F
0 0E11131519110E  1 040C040404040E  2 0E11010204081F  3 1F02040201110E  4 02060A121F0202  5 1F101E0101110E
6 0608101E11110E  7 1F010204080808  8 0E11110E11110E  9 0E11110F01020C
. 00000000000C0C  , 000000000C0408  : 000C0C000C0C00  ! 04040404040004  ? 0E110102040004  - 0000001F000000
/ 00010204081000  + 0004041F040400  % 18190204081303  $ 040F140E051E04
"""


def _glyphs() -> dict[str, np.ndarray]:
    parts = _TABLE.split()
    rows = {sign: bytes.fromhex(dots) for sign, dots in zip(parts[::2], parts[1::2], strict=True)}
    return {sign: np.array([[row >> bit & 1 for bit in (4, 3, 2, 1, 0)] for row in of], np.uint8) for sign, of in rows.items()}


GLYPHS = _glyphs()  # sign to its dots, uint8 [7, 5]
SIGNS = frozenset(GLYPHS) | {" "}  # what can be printed, in capitals


def dots_of(text: str) -> np.ndarray:
    """The dots of a line of text, uint8 0 or 1 [7, 6 · letters − 1]. Raises KeyError for a sign that the font does not have."""
    result = np.zeros((DOTS, max(1, _ADVANCE * len(text) - 1)), np.uint8)
    for place, sign in enumerate(text.upper()):
        if sign != " ":
            result[:, _ADVANCE * place : _ADVANCE * place + 5] = GLYPHS[sign]
    return result


def width_of(letters: int, height: int) -> int:
    """Pixels that a line of so many letters takes at this height of print."""
    return max(1, round((_ADVANCE * letters - 1) * height / DOTS))


@lru_cache(maxsize=20_000)
def printed(text: str, height: int) -> np.ndarray:
    """The share of each pixel that is ink, 0 to 256: uint16 [height, width]. height: of the capitals, in pixels."""
    dots = dots_of(text)
    fine = np.repeat(np.repeat(dots * 255, height, 0), height, 1) if height > DOTS else np.repeat(np.repeat(dots * 255, 8, 0), 8, 1)
    size = width_of(len(text), height), height
    ink = np.asarray(Image.fromarray(fine).resize(size, Image.Resampling.BOX)).astype(np.uint16)
    covered: np.ndarray = ink + (ink > 127)
    return covered


def ink(canvas: np.ndarray, text: str, x: int, y: int, height: int, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Print a line with its top left corner at (x, y) and return its box. canvas: uint16 [H, W, 3] of values 0 to 255, within
    which the line must lie.
    """
    share = printed(text, height)[..., None]
    high, wide = share.shape[:2]
    under = canvas[y : y + high, x : x + wide]
    under[:] = (under * (256 - share) + np.array(colour, np.uint16) * share) >> 8
    return x, y, x + wide, y + high
