"""The faults of a row, one function each. Pictures are uint8 [height, width, 3]; all randomness comes from the given ``Random``."""

from __future__ import annotations

import io
import textwrap
from functools import cache
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from diptych.core.extras import need
from diptych.data.scenes.concepts import by_name
from diptych.data.scenes.graph import Graph

# "{a}" and "{b}" are names of objects; two sentences in each language of PyPI's ``emoji`` except English.
SENTENCES = {
    "ar": ("صورة {a} و{b}", "يوجد {a} بجانب {b}"),
    "de": ("ein Bild von {a} und {b}", "hier sieht man {a} neben {b}"),
    "es": ("una imagen de {a} y {b}", "hay {a} al lado de {b}"),
    "fa": ("تصویری از {a} و {b}", "{a} در کنار {b} است"),
    "fr": ("une image de {a} et {b}", "il y a {a} à côté de {b}"),
    "id": ("sebuah gambar {a} dan {b}", "ada {a} di sebelah {b}"),
    "it": ("un'immagine di {a} e {b}", "c'è {a} accanto a {b}"),
    "ja": ("{a}と{b}の写真です", "{a}のそばに{b}があります"),
    "ko": ("{a}와 {b}의 사진입니다", "{a} 옆에 {b}이 있습니다"),
    "pt": ("uma imagem de {a} e {b}", "há {a} ao lado de {b}"),
    "ru": ("картинка, на которой {a} и {b}", "здесь {a} рядом с {b}"),
    "tr": ("{a} ve {b} resmi", "burada {a} yanında {b} var"),
    "zh": ("{a}和{b}的图片", "{a}旁边有{b}"),
}
BOILERPLATE = (
    "IMG_{n}.JPG", "DSC0{n}", "image {n}", "Photo ({n})", "untitled", "Click here to enlarge the picture",
    "Buy now and get free shipping on all orders", "Royalty-free stock photo, image id {n}", "copyright 2019, all rights reserved",
    "Subscribe to our newsletter and follow us", "screenshot-{n}.png", "Download now for free", "thumbnail",
    "Image credit: Getty Images",
    "Visit https://shop.example.com/item/{n}", "Share this picture, read more on page {n}", "picture-{n}-final.jpeg", "null",
)  # fmt: skip


# Texts


@cache
def _names(language: str) -> dict[str, str]:
    """``{concept: name in another language}``, where ``emoji`` has one."""
    emoji, codes = (need(name, extra="scenes", what="a made pool") for name in ("emoji", "emoji.unicode_codes"))
    codes.load_from_json(language)
    names = {}
    for name, concept in by_name().items():
        mark = chr(int(concept.code, 16))
        entry = emoji.EMOJI_DATA.get(mark) or emoji.EMOJI_DATA.get(mark + "\ufe0f") or {}
        if language in entry:
            names[name] = entry[language].strip(":").replace("_", " ")
    return names


def foreign(graph: Graph, random: Random) -> tuple[str, str]:
    """A true caption in another language, and the code of the language."""
    language = random.choice(sorted(SENTENCES))
    names = _names(language)
    known = [names[t.concept] for t in graph.things if t.concept in names]
    others = sorted(set(names.values()) - set(known))
    while len(known) < 2:
        known.append(random.choice(others))
    return random.choice(SENTENCES[language]).format(a=known[0], b=known[1]), language


def boilerplate(random: Random) -> str:
    """A stock phrase."""
    return random.choice(BOILERPLATE).format(n=random.randrange(100, 10_000))


def repetitive(caption: str, random: Random) -> str:
    """The caption with repetitions."""
    words = caption.split()
    few = " ".join(words[-random.randint(1, 3) :])
    return " ".join([few] * random.randint(5, 9))


def short(graph: Graph, random: Random) -> str:
    """A caption of one or two words, or with hardly any letters."""
    concept = graph.things[0].concept.split()[-1]
    return random.choice([concept, f"the {concept}", "..", "a b c", "?", "4 u"])


# Pictures


def jpeg(picture: np.ndarray, quality: int = 92) -> bytes:
    """The picture as a JPEG file."""
    import simplejpeg

    data: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(picture), quality, "RGB", "420" if quality < 90 else "444")
    return data


def png(picture: np.ndarray) -> bytes:
    """The picture as a PNG file."""
    sink = io.BytesIO()
    Image.fromarray(picture).save(sink, "PNG", compress_level=1)
    return sink.getvalue()


def resized(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """The picture scaled to a size."""
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))


def cropped(picture: np.ndarray, random: Random) -> np.ndarray:
    """The picture without 4 to 14 % of each axis."""
    height, width = picture.shape[:2]
    down, across = (round(side * (0.04 + 0.1 * random.random())) for side in (height, width))
    top, left = random.randint(0, down), random.randint(0, across)
    return picture[top : height - down + top, left : width - across + left]


def recoloured(picture: np.ndarray, random: Random) -> np.ndarray:
    """The picture with other saturation, brightness and contrast, and a tint."""
    image = Image.fromarray(picture)
    for change, low, high in (
        (ImageEnhance.Color, 0.3, 1.8),
        (ImageEnhance.Brightness, 0.75, 1.2),
        (ImageEnhance.Contrast, 0.7, 1.3),
    ):
        image = change(image).enhance(low + (high - low) * random.random())
    tint = np.array([0.85 + 0.15 * random.random() for _ in range(3)])
    tinted: np.ndarray = np.rint(np.asarray(image) * tint).astype(np.uint8)
    return tinted


def written(caption: str, size: int, random: Random) -> np.ndarray:
    """A picture of the caption: text on a uniform background."""
    from diptych.data.sheet import font

    need("matplotlib", extra="report", what="a made pool (its font)")  # Pillow's own font would change the pixels
    ground = tuple(random.randrange(200, 256) for _ in range(3))
    ink = tuple(random.randrange(0, 90) for _ in range(3))
    if random.random() < 0.3:
        ground, ink = ink, ground
    image = Image.new("RGB", (size, size), ground)
    points = random.choice((16, 20, 24, 28))
    lines = textwrap.wrap(caption, max(8, int((size - 20) / (0.6 * points))))
    top = random.randint(8, max(8, size - 8 - round(1.3 * points * len(lines))))
    ImageDraw.Draw(image).multiline_text((10, top), "\n".join(lines), fill=ink, font=font(points), spacing=round(0.3 * points))
    return np.asarray(image)


def tiny(picture: np.ndarray, random: Random) -> np.ndarray:
    """The picture at a few pixels."""
    return resized(picture, random.randint(20, 150), random.randint(20, 150))


def huge(picture: np.ndarray, random: Random) -> np.ndarray:
    """The picture at a very large size."""
    return resized(picture, random.randint(2600, 3600), random.randint(2600, 3600))


def banner(picture: np.ndarray, random: Random) -> np.ndarray:
    """The picture with an aspect above 3 and no side below 200 pixels."""
    long = round(210 * (3.2 + 2 * random.random()))
    return resized(picture, *((long, 210) if random.random() < 0.7 else (210, long)))


def dark(picture: np.ndarray, random: Random) -> np.ndarray:
    """The picture almost black."""
    return np.rint(picture * (0.04 + 0.1 * random.random())).astype(np.uint8)


def light(picture: np.ndarray, random: Random) -> np.ndarray:
    """The picture almost white."""
    return 255 - np.rint((255.0 - picture) * (0.03 + 0.08 * random.random())).astype(np.uint8)


def blurred(picture: np.ndarray, random: Random) -> np.ndarray:
    """The picture blurred."""
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(3 + 5 * random.random())))


def empty(picture: np.ndarray, random: Random) -> np.ndarray:
    """A picture of one colour, or an almost empty placeholder."""
    flat = np.empty_like(picture)
    flat[:] = [random.randrange(60, 220) for _ in range(3)]
    if random.random() < 0.5:
        flat[len(flat) // 3 : len(flat) // 3 + 4] //= 2
    return flat


def grey(picture: np.ndarray, random: Random) -> np.ndarray:
    """The picture without colour."""
    return np.repeat(np.asarray(Image.fromarray(picture).convert("L"))[..., None], 3, axis=2)


def broken(picture: np.ndarray, random: Random) -> bytes:
    """The bytes of a damaged picture file."""
    kind = random.randrange(5)
    if kind == 0:
        data = jpeg(picture)
        return data[: random.randint(len(data) // 10, len(data) * 2 // 3)]
    if kind == 1:
        data = png(picture)
        return data[: len(data) // 2]
    if kind == 2:
        return b""
    if kind == 3:
        return b"<!DOCTYPE html><html><body><h1>404 Not Found</h1></body></html>"
    return random.randbytes(random.randint(2_000, 12_000))
