import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, features

from diptych.core.errors import DiptychError
from diptych.data.image import FORMATS, as_pixels, decode, random_resized_crop, resize
from diptych.data.source import BrokenItem


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def halves(width: int = 64, height: int = 32) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), (255, 0, 0))
    image.paste((0, 0, 255), (width // 2, 0, width, height))
    return image


def close(pixel: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool(np.abs(pixel.astype(int) - colour).max() <= 6)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_decodes_every_format(kind: str) -> None:
    pixels = decode(encoded(halves(), kind), "x")
    assert pixels.shape == (32, 64, 3) and pixels.dtype == np.uint8
    assert close(pixels[16, 8], (255, 0, 0)) and close(pixels[16, 56], (0, 0, 255))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_respected(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decode(encoded(halves(), kind, exif=exif), "x")
    turned = orientation >= 5
    assert pixels.shape == ((64, 32, 3) if turned else (32, 64, 3))
    flipped = orientation in (2, 3, 7, 8)  # the red half is then on the right, or at the bottom
    first, last = (pixels[4, 16], pixels[-4, 16]) if turned else (pixels[16, 4], pixels[16, -4])
    red, blue = (last, first) if flipped else (first, last)
    assert close(red, (255, 0, 0)) and close(blue, (0, 0, 255))


def test_modes_become_rgb() -> None:
    grey = decode(encoded(Image.new("L", (8, 8), 77), "JPEG"), "x")
    assert close(grey[0, 0], (77, 77, 77))
    palette = decode(encoded(halves().convert("P"), "PNG"), "x")
    assert close(palette[0, 0], (255, 0, 0))
    cmyk = decode(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"), "x")
    assert close(cmyk[8, 8], (255, 0, 0))
    bits = decode(encoded(Image.new("1", (8, 8), 1), "PNG"), "x")
    assert close(bits[0, 0], (255, 255, 255))


def test_transparency_lies_over_white() -> None:
    pixels = decode(encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), "PNG"), "x")
    assert close(pixels[0, 0], (255, 255, 255))
    pixels = decode(encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 128)), "PNG"), "x")
    assert close(pixels[0, 0], (127, 127, 127))
    pixels = decode(encoded(Image.new("LA", (8, 8), (0, 0)), "PNG"), "x")
    assert close(pixels[0, 0], (255, 255, 255))
    palette = halves().quantize(2)
    pixels = decode(encoded(palette, "PNG", transparency=palette.getpixel((0, 0))), "x")
    assert close(pixels[16, 8], (255, 255, 255)) and close(pixels[16, 56], (0, 0, 255))


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    wide = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    pixels = decode(encoded(Image.fromarray(wide), "PNG"), "x")
    assert np.array_equal(pixels[..., 0], wide >> 8)


@pytest.mark.parametrize(("bits", "kind"), [(8, "PNG"), (10, "PNG"), (12, "TIFF"), (12, "PNG"), (14, "TIFF"), (16, "TIFF")])
def test_fewer_bits_in_a_file_of_sixteen_are_not_black(bits: int, kind: str) -> None:
    wide = np.linspace(0, 2**bits - 1, 64).astype(np.uint16).reshape(8, 8)
    assert np.array_equal(decode(encoded(Image.fromarray(wide), kind), "x")[..., 0], wide >> (bits - 8))
    dim = wide // 2 + 1  # its largest value needs one bit less
    brightest = decode(encoded(Image.fromarray(dim), kind), "x").max()
    assert 127 <= brightest <= 255


def test_thirty_two_bits_and_black() -> None:
    assert decode(encoded(Image.new("I", (8, 8), 0), "TIFF"), "x").max() == 0
    wide = np.array([[0, 2**20 - 1]] * 8, dtype=np.int32)
    assert decode(encoded(Image.fromarray(wide), "TIFF"), "x")[0, :, 0].tolist() == [0, 255]


HEAD = b"\0\0\0\x18ftyp"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (HEAD + b"heic\0\0\0\0mif1heic", "HEIC is not read: convert it"),
        (HEAD + b"mif1\0\0\0\0mif1heic", "HEIC is not read: convert it"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL is not read: convert it"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000 is not read: convert it"),
        (b"a text file", "not an image"),
    ],
)
def test_what_is_not_decoded_is_called_what_it_is(data: bytes, reason: str) -> None:
    assert reason in broken(data + bytes(400))


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(halves(), "AVIF")
    pixels = decode(data, "x")
    assert close(pixels[16, 8], (255, 0, 0)) and close(pixels[16, 56], (0, 0, 255))
    monkeypatch.setattr("diptych.data.image._formats", lambda: FORMATS)  # an older Pillow
    assert "AVIF, which this Pillow does not read: pip install -U pillow" in broken(data)


def broken(data: bytes) -> str:
    with pytest.raises(BrokenItem) as caught:
        decode(data, "photos/a.jpg")
    assert caught.value.problem.item == "photos/a.jpg"
    return caught.value.problem.reason


def test_what_is_no_image_is_named() -> None:
    assert "empty" in broken(b"")
    assert "not an image" in broken(b"This is a text file, whatever its name.")
    assert "not an image" in broken(b"<html>404</html>")
    assert broken(b"\xff\xd8\xff\xe0 not really a jpeg")
    assert "not an image" in broken(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")  # would run Ghostscript


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_images_are_refused(kind: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    assert "truncated" in broken(data[: int(len(data) * share)])


def bomb(width: int, height: int) -> bytes:
    """A 1-bit PNG's head; small enough that a decoder would start on it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_image_bombs_are_refused_from_the_header() -> None:
    assert "900,000,000 pixels" in broken(bomb(30_000, 30_000))
    assert "12000 × 10000" in broken(bomb(12_000, 10_000))
    jpeg = bytearray(encoded(Image.new("L", (16, 16)), "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 30_000, 30_000)
    assert "limit" in broken(bytes(jpeg))


def test_resize_crop_takes_the_centre_and_squash_the_whole() -> None:
    stripes = np.zeros((40, 120, 3), np.uint8)
    stripes[:, :40, 0] = stripes[:, 40:80, 1] = stripes[:, 80:, 2] = 255
    crop = resize(stripes, 20)
    assert crop.shape == (20, 20, 3) and (crop[:, 2:-2] == (0, 255, 0)).all()
    squash = resize(stripes, 30, "squash")
    assert squash.shape == (30, 30, 3)
    assert close(squash[15, 3], (255, 0, 0)) and close(squash[15, 27], (0, 0, 255))
    assert resize(np.ones((1, 500, 3), np.uint8), 8).shape == (8, 8, 3)
    with pytest.raises(ValueError, match="squash"):
        resize(stripes, 20, "stretch")  # type: ignore[arg-type]


def test_resize_is_antialiased() -> None:
    board = np.indices((64, 64)).sum(0) % 2 * 255
    small = resize(np.repeat(board[..., None], 3, 2).astype(np.uint8), 8)
    assert np.abs(small.astype(int) - 127).max() < 10


def test_random_crop_is_reproducible_varied_and_never_mirrored() -> None:
    ramp = np.repeat(np.linspace(0, 255, 90).astype(np.uint8)[None, :, None], 60, 0).repeat(3, 2)
    crops = [random_resized_crop(ramp, 16, random.Random(seed)) for seed in range(20)]
    assert all(c.shape == (16, 16, 3) and c.dtype == np.uint8 for c in crops)
    assert all(int(c[8, -1, 0]) > int(c[8, 0, 0]) + 80 for c in crops)
    assert len({c.tobytes() for c in crops}) > 15
    assert np.array_equal(crops[3], random_resized_crop(ramp, 16, random.Random(3)))
    assert random_resized_crop(np.ones((2, 900, 3), np.uint8), 8, random.Random(0)).shape == (8, 8, 3)


def test_pixels_of_an_array_a_pillow_image_a_path_and_bytes(tmp_path):
    image = halves()
    image.save(tmp_path / "a.png")
    want = np.array(image)
    for given in (want, image, image.convert("RGBA"), str(tmp_path / "a.png"), tmp_path / "a.png", encoded(image, "PNG")):
        np.testing.assert_array_equal(as_pixels(given, "image 0"), want)


@pytest.mark.parametrize(
    "given, message",
    [
        (np.zeros((4, 4, 3)), r"image 7: expected uint8 pixels \[height, width, 3\], got float64 \[4, 4, 3\]"),
        (np.zeros((4, 4), np.uint8), r"image 7: .* got uint8 \[4, 4\]"),
        ("no/such.png", "no/such.png of item"),
        (b"no image", "picture of item image 7: not an image"),
        (Image.new("F", (4, 4)), "image 7: floating-point pixels"),
        (3, "image 7: expected an array, a Pillow image or a path, got int"),
    ],
)
def test_what_is_no_picture_is_refused(given, message):
    with pytest.raises(DiptychError, match=message):
        as_pixels(given, "image 7")
