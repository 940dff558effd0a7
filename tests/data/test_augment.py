"""Augmentations against definitions in float64 (torchvision's v2 transforms for float images), and what is drawn from what."""

from __future__ import annotations

import colorsys
import math
import random

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from diptych.config.augment import PRESETS, Augment, read_augment
from diptych.config.recipe import load_recipe
from diptych.core.errors import DiptychError
from diptych.data import augment as aug
from diptych.data.image import random_resized_crop, resize

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 52, 3), dtype=np.uint8)
FLOATS = (IMAGE.astype(np.float32) / 255)[:24, :30]
FLOATS[0, :4] = [[0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [1, 0, 0]]  # no hue, and a pure one
EXACT = FLOATS.astype(np.float64)
WEIGHTS = np.array([0.299, 0.587, 0.114])


def blended(other: np.ndarray, factor: float) -> np.ndarray:
    return np.clip(factor * EXACT + (1 - factor) * other, 0, 1)


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 1.8])
def test_brightness_contrast_and_saturation(factor: float) -> None:
    grey = EXACT @ WEIGHTS
    for found, wanted in (
        (aug.brightness(FLOATS, factor), np.clip(EXACT * factor, 0, 1)),
        (aug.contrast(FLOATS, factor), blended(np.full_like(EXACT, grey.mean()), factor)),
        (aug.saturation(FLOATS, factor), blended(np.repeat(grey[..., None], 3, -1), factor)),
    ):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("shift", [-0.5, -0.13, 0.0, 0.2, 0.5])
def test_hue_turns_the_colour_circle(shift: float) -> None:
    wanted = np.empty_like(EXACT)
    for y, x in np.ndindex(EXACT.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*EXACT[y, x])
        wanted[y, x] = colorsys.hsv_to_rgb((h + shift) % 1, s, v)
    found = aug.hue(FLOATS, shift)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=3e-6)
    np.testing.assert_allclose(aug.hue(np.array([[[1, 0, 0]]], np.float32), 1 / 3)[0, 0], [0, 1, 0], atol=1e-6)


def test_grey_and_solarize() -> None:
    np.testing.assert_allclose(aug.grey(FLOATS), np.repeat((EXACT @ WEIGHTS)[..., None], 3, -1), atol=1e-6)
    levels = np.arange(256, dtype=np.uint8)
    found = np.rint(aug.solarize(levels.astype(np.float32) / 255, 128) * 255)
    assert found.tolist() == [v if v < 128 else 255 - v for v in range(256)]  # the threshold itself is inverted
    assert (aug.solarize(FLOATS, 256) == FLOATS).all()


@pytest.mark.parametrize(("sigma", "radius"), [(0.1, 2), (1.3, 3), (2.0, 11)])
def test_blur(sigma: float, radius: int) -> None:
    kernel = np.array([math.exp(-x * x / (2 * sigma**2)) for x in range(-radius, radius + 1)])
    kernel /= kernel.sum()
    wanted = EXACT
    for axis in (0, 1):
        wanted = ndimage.correlate1d(wanted, kernel, axis=axis, mode="mirror")
    found = aug.gaussian_blur(FLOATS, sigma, radius)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    assert aug.gaussian_blur(FLOATS[:3], 2.0, 11).shape == (3, 30, 3)  # a kernel wider than the image


def test_crop_gives_the_pixels_that_it_gave_before_and_none_the_central_square() -> None:
    for seed in range(20):
        found = aug.augmenter("crop", 24)(IMAGE, random.Random(seed))
        assert (found == random_resized_crop(IMAGE, 24, random.Random(seed))).all()
    none = aug.augmenter("none", 24)
    rng = random.Random(0)
    state = rng.getstate()
    assert (none(IMAGE, rng) == resize(IMAGE, 24)).all() and rng.getstate() == state and not none.draws
    square = IMAGE[:40, :40]
    assert (aug.augmenter("none", 40)(square, rng) == square).all()


def test_the_same_generator_gives_the_same_image() -> None:
    simclr = aug.augmenter("simclr", 32)
    images = [simclr(IMAGE, random.Random(seed), ["a dog"]) for seed in (1, 2, 1)]
    assert all(i.dtype == np.uint8 and i.shape == (32, 32, 3) and i.flags["C_CONTIGUOUS"] for i in images)
    assert (images[0] == images[2]).all() and (images[0] != images[1]).any()
    assert simclr.draws


def test_the_chain_is_the_operations_in_order_rounded_once() -> None:
    spec = {
        "jitter": {"brightness": 0.4, "hue": 0.1, "p": 1},
        "grey": 1.0,
        "blur": {"p": 1, "sigma": [0.5, 1.5]},
        "solarize": {"p": 1, "threshold": 100},
    }
    found = aug.augmenter(spec, 40)(IMAGE, random.Random(3))
    rng = random.Random(3)
    image = resize(IMAGE, 40).astype(np.float32) / 255
    rng.random()
    chosen = [(aug.brightness, rng.uniform(0.6, 1.4)), (aug.hue, rng.uniform(-0.1, 0.1))]
    rng.shuffle(chosen)
    for operation, parameter in chosen:
        image = operation(image, parameter)
    rng.random()
    image = aug.grey(image)
    rng.random()
    image = aug.solarize(aug.gaussian_blur(image, rng.uniform(0.5, 1.5), 2), 100)
    assert (found == np.rint(np.clip(image, 0, 1) * 255)).all()


def test_factors_fill_their_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, float]] = []
    for name in ("brightness", "contrast", "saturation", "hue"):
        monkeypatch.setattr(aug, name, lambda image, value, name=name: (seen.append((name, value)), image)[1])
    jitter = aug.Jitter(brightness=0.4, contrast=1.5, saturation=0.2, hue=0.1)
    for seed in range(500):
        jitter(FLOATS, random.Random(seed))
    for name, low, high in (("brightness", 0.6, 1.4), ("contrast", 0, 2.5), ("saturation", 0.8, 1.2), ("hue", -0.1, 0.1)):
        values = [value for n, value in seen if n == name]
        assert len(values) == 500 and stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3
    assert {name for name, _ in seen[::4]} == {"brightness", "contrast", "saturation", "hue"}  # in random order


def test_chances() -> None:
    half = {"grey": 0.3, "flip": 0.25}
    made = [aug.augmenter(half, 40)(IMAGE[:, :40], random.Random(seed), ["a cat"]) for seed in range(2000)]
    square = resize(IMAGE[:, :40], 40)
    is_grey = np.mean([np.ptp(image, axis=-1).max() == 0 for image in made])
    coloured = [image for image in made if np.ptp(image, axis=-1).max()]
    flipped = np.mean([(image == square[:, ::-1]).all() for image in coloured])
    assert abs(is_grey - 0.3) < 0.04 and abs(flipped - 0.25) < 0.04


SIDED = [
    "a dog on the left of a cat", "the RIGHT shoe", "the leftmost bird", "a left-handed pitcher", "turning rightwards",
    "ein Hund links neben einer Katze", "die rechte Hand", "linker Hand ein Haus", "rechtsseitig", "im rechten Bild",
    "un chien à gauche", "la main droite", "le côté droit", "un perro a la izquierda", "el zapato derecho", "un gaucher",
]  # fmt: skip
PLAIN = [
    "a bright leftover pizza", "copyright notice", "a frightened cat", "ein Rechteck verlinkt", "une maladroite",
    "a link in a chain",    "aufrecht stehend", "a dog above a cat", "un perro grande",
]  # fmt: skip


def test_captions_about_sides_are_recognised() -> None:
    assert [c for c in SIDED if not aug.speaks_of_sides([c])] == []
    assert [c for c in PLAIN if aug.speaks_of_sides([c])] == []
    assert aug.speaks_of_sides(["a dog", SIDED[0]]) and not aug.speaks_of_sides([])


def test_an_image_is_flipped_only_where_no_caption_speaks_of_sides() -> None:
    flip = aug.augmenter({"flip": 1.0, "grey": 0.5}, 40)
    square = resize(IMAGE, 40)
    for seed in range(8):
        rng, other = random.Random(seed), random.Random(seed)
        free, bound = flip(IMAGE, rng, ["a dog"]), flip(IMAGE, other, ["a dog", "a dog left of a cat"])
        assert (free == bound[:, ::-1]).all() and rng.getstate() == other.getstate()  # all other draws are the same
        if np.ptp(bound, axis=-1).max():
            assert (bound == square).all()


def test_views() -> None:
    three = aug.augmenter({"preset": "simclr", "views": 3}, 32)
    views = three.views(IMAGE, random.Random(5))
    assert len(views) == 3 and (views[0] == three(IMAGE, random.Random(5))).all()
    assert (views[0] != views[1]).any() and (views[1] != views[2]).any()


class Halve:
    """An operation of one's own."""

    def __init__(self, *, factor: float = 0.5):
        self.factor = factor

    def __call__(self, image: np.ndarray, rng: random.Random) -> np.ndarray:
        return image * self.factor


def test_operations_of_ones_own() -> None:
    spec = {"also": [{"kind": f"{__name__}:Halve", "factor": 0.25}, {"kind": "grey", "p": 1}]}
    found = aug.augmenter(spec, 40)(IMAGE, random.Random(0))
    wanted = aug.grey(resize(IMAGE, 40).astype(np.float32) / 255 * 0.25)
    assert (found == np.rint(wanted * 255)).all()
    with pytest.raises(DiptychError, match="no augmentation 'gray'; did you mean 'grey'"):
        aug.augmenter({"also": [{"kind": "gray"}]}, 40)
    with pytest.raises(DiptychError, match=r"data\.augment\.also\.0: unknown option 'q'"):
        aug.augmenter({"also": [{"kind": "blur", "q": 1}]}, 40)


def test_settings() -> None:
    assert read_augment("none") == Augment() and read_augment({}) == Augment()
    assert Augment.model_validate("crop").crop.scale == (0.6, 1.0)
    mixed = read_augment({"preset": "simclr", "flip": 0, "views": 2})
    assert mixed.flip == 0 and mixed.views == 2 and mixed.jitter.hue == 0.2
    for name in PRESETS:  # a saved recipe holds the whole setting
        spec = read_augment(name)
        assert read_augment(spec.model_dump(mode="json")) == spec
    for spec, message in (
        ("simcrl", "no preset 'simcrl'; did you mean 'simclr'"),
        ({"jiter": {}}, "unknown key 'jiter'; did you mean 'jitter'"),
        ({"crop": {"scale": [0.9, 0.5]}}, "crop.scale: expected two positive numbers, the lower one first"),
        ({"crop": {"scale": [0.5, 1.5]}}, "crop.scale: expected shares"),
        ({"jitter": {"hue": 0.7}}, "jitter.hue"),
        ({"flip": 2}, "flip"),
        ({"mixup": 0.4}, "mixup changes what a loss compares.*in an objective of your own by diptych.data.augment.mixup"),
    ):
        with pytest.raises(DiptychError, match=message):
            read_augment(spec)


def test_recipes_of_earlier_versions_that_wrote_no_mixup_open() -> None:
    assert read_augment({"preset": "crop", "mixup": 0.0}) == read_augment("crop")


def test_several_views_are_for_the_field_views_alone() -> None:
    with pytest.raises(DiptychError, match=r"data\.augment: views: 3 has no effect here.*set data\.views"):
        load_recipe("clip", {"data.augment": {"preset": "crop", "views": 3}})
    assert load_recipe("clip", {"data.views": {"preset": "crop", "views": 3}}).data.views.views == 3


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_mixup(per_sample: bool, dtype: torch.dtype) -> None:
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (6, 3, 4, 5))).to(dtype)
    mixed, permutation, lam = aug.mixup(pixels, 0.4, torch.Generator().manual_seed(7), per_sample)
    again = aug.mixup(pixels, 0.4, torch.Generator().manual_seed(7), per_sample)
    assert all(torch.equal(a, b) for a, b in zip((mixed, permutation, lam), again, strict=True))
    assert sorted(permutation.tolist()) == list(range(6)) and lam.shape == (6,) and lam.dtype == torch.float32
    assert (len(set(lam.tolist())) == 1) != per_sample
    share, plain = lam.numpy().astype(np.float64).reshape(6, 1, 1, 1), pixels.numpy().astype(np.float64)
    wanted = share * plain + (1 - share) * plain[permutation.numpy()]
    assert mixed.dtype == dtype
    np.testing.assert_allclose(mixed.double().numpy(), wanted, atol=0.501 if dtype == torch.uint8 else 1e-4)


def test_lambda_is_of_the_beta_distribution() -> None:
    pixels = torch.zeros(4000, 1)
    for alpha in (0.05, 0.4, 2.0):
        lam = aug.mixup(pixels, alpha, torch.Generator().manual_seed(0), per_sample=True)[2].double().numpy()
        inner = lam[(lam > 1e-6) & (lam < 1 - 1e-6)]  # float32 rounds the ends
        low, high = stats.beta(alpha, alpha).cdf([1e-6, 1 - 1e-6])
        assert stats.kstest((stats.beta(alpha, alpha).cdf(inner) - low) / (high - low), "uniform").pvalue > 1e-3
    mixed, _, lam = aug.mixup(pixels, 0.0)
    assert mixed is pixels and (lam == 1).all()
    with pytest.raises(ValueError, match="alpha"):
        aug.mixup(pixels, -1.0)
