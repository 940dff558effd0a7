"""Choosing and adapting on pictures with captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import diptych as dp
from choose_fixture import MODEL, picture
from diptych.choose.captions import METRICS, chosen_settings, outer_folds
from diptych.choose.captions import tested as judged
from diptych.choose.maps import MAP_WAYS, AsIs, Centred, Pairs, Residual, Rotated, contrast, ranks
from diptych.choose.run_captions import chosen_in_folds, verdict_of
from diptych.cli import app
from diptych.core.arrays import unit_rows
from diptych.core.errors import DiptychError
from diptych.core.files import read_json
from diptych.inference.mapped import MappedModel, Maps, SideMap

COLOURS = ("red", "green", "blue", "grey")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))


def photos(folder: Path, n: int = 24) -> Path:
    folder.mkdir(parents=True)
    for i in range(n):
        Image.fromarray(picture(COLOURS[i % 4], i)).save(folder / f"{i:03d}.png")
        (folder / f"{i:03d}.txt").write_text(f"a {COLOURS[i % 4]} picture\nsomething {COLOURS[i % 4]}\n")
    return folder


def pairs(n: int = 60, width: int = 12, noise: float = 0.5, seed: int = 0, turn: bool = False, each: int = 2) -> Pairs:
    """Images and captions that share a vector; ``turn``: the images' are turned, and moved."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n, width))
    owner = np.repeat(np.arange(n), each)
    x = common + noise * rng.normal(size=common.shape)
    if turn:
        q, _ = np.linalg.qr(rng.normal(size=(width, width)))
        x = x @ q + 2.0
    t = common[owner] + noise * rng.normal(size=(n * each, width))
    return Pairs(unit_rows(x).astype(np.float32), unit_rows(t).astype(np.float32), owner, np.arange(n))


def cli(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(words))
    if result.exception is not None and isinstance(result.exception, DiptychError):
        return 1, str(result.exception)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_choose_adapt_and_search(tmp_path: Path) -> None:
    data, out = f"folder:{photos(tmp_path / 'p')}", tmp_path / "o"
    status, text = cli("choose", MODEL, "hf:/no/such", "--data", data, "--out", str(out))
    assert status == 0 and "not tried:  hf:/no/such" in text.replace("\n", " "), text
    results = read_json(out / "results.json")
    assert {c["way"] for c in results["cells"]} == set(MAP_WAYS) and results["data"]["captions"] == 48
    assert all(len(c["credits"][METRICS[0]]) == 48 and len(c["credits"][METRICS[2]]) == 24 for c in results["cells"])
    assert "To make it: diptych adapt" in text and (out / "report.html").stat().st_size > 9_000
    before = {p: p.stat().st_mtime_ns for p in out.glob("cells/**/*.json")}
    assert cli("choose", MODEL, "--data", data, "--out", str(out))[0] == 0
    assert before == {p: p.stat().st_mtime_ns for p in out.glob("cells/**/*.json")}  # nothing is computed again
    adapted = tmp_path / "a"
    assert cli("adapt", MODEL, "--way", "rotated", "--data", data, "--out", str(adapted))[0] == 0
    model = dp.load(adapted)
    images, words = [picture(c, 77) for c in COLOURS], [f"a {c} thing" for c in COLOURS]
    assert (model.score(images, words).argmax(1) == np.arange(4)).all()
    assert np.allclose(np.linalg.norm(model.embed_text(words), axis=1), 1, atol=1e-5)
    assert cli("evaluate", str(adapted), "--data", data, "--tasks", "retrieval", "--split", "all")[0] == 0


def test_ways_of_the_other_kind_are_refused(tmp_path: Path) -> None:
    data = f"folder:{photos(tmp_path / 'p')}"
    assert "is for classes, and folder:" in cli("adapt", MODEL, "--way", "probe", "--data", data)[1]
    assert (
        "--shots, --test-data and --descriptions are for classes"
        in cli("choose", MODEL, "--data", data, "--shots", "4", "--out", str(tmp_path / "o"))[1]
    )
    assert "did you mean 'centred'" in cli("choose", MODEL, "--data", data, "--ways", "centered", "--out", str(tmp_path / "o"))[1]


def test_few_pictures_are_refused(tmp_path: Path) -> None:
    assert (
        "at least 10 are needed"
        in cli("choose", MODEL, "--data", f"folder:{photos(tmp_path / 'p', 8)}", "--out", str(tmp_path / "o"))[1]
    )


def test_ranks_count_ties_half() -> None:
    few = Pairs(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)[[0, 1, 1]], np.array([0, 1, 2]), np.arange(3))
    to_image, to_text = ranks(AsIs().fit(few), few)
    assert to_image.tolist() == [0, 0, 1.5]  # the third caption fits the second image; the first and third tie
    assert to_text.tolist() == [0, 0.5, 1.0]  # two captions of others tie with the third picture's own


def test_ranks_against_a_loop() -> None:
    given = pairs(20, noise=1.0)
    to_image, to_text = ranks(AsIs().fit(given), given)
    scores = given.t.astype(np.float64) @ given.x.T.astype(np.float64)
    for m, i in enumerate(given.owner):
        assert to_image[m] == sum(scores[m, j] > scores[m, i] for j in range(20))
    for i in range(20):
        own = max(scores[m, i] for m in range(40) if given.owner[m] == i)
        assert to_text[i] == sum(scores[m, i] > own for m in range(40) if given.owner[m] != i)


def test_contrast_against_a_plain_loop_and_its_gradient() -> None:
    given = pairs(6, width=5)
    x, t = given.x.astype(np.float64) * 1.7, given.t.astype(np.float64) * 0.6
    total = 0.0
    unit_x, unit_t = unit_rows(x), unit_rows(t)
    for m, i in enumerate(given.owner):
        row = np.exp(3.0 * unit_x @ unit_t[m])
        column = {k: np.exp(3.0 * unit_t[k] @ unit_x[i]) for k in range(len(t)) if given.owner[k] != i}
        own = np.exp(3.0 * unit_t[m] @ unit_x[i])
        total += -np.log(row[i] / row.sum()) / 2 - np.log(own / (own + sum(column.values()))) / 2
    leaves = [torch.from_numpy(v).requires_grad_() for v in (x, t)]
    owner = torch.from_numpy(given.owner)
    assert float(contrast(*leaves, owner, 3.0)) == pytest.approx(total / len(t), rel=1e-9)
    assert torch.autograd.gradcheck(lambda a, b: contrast(a, b, owner, 3.0), leaves)


def test_the_rotation_is_scipys() -> None:
    from scipy.linalg import orthogonal_procrustes

    given = pairs(40, turn=True, noise=0.05)
    maps = Rotated(share=1.0).fit(given)
    x, t = unit_rows(given.x - given.x.mean(0)), unit_rows(given.t - given.t.mean(0))
    oracle, _ = orthogonal_procrustes(x[given.owner].astype(np.float64), t.astype(np.float64))
    assert np.allclose(np.eye(12) + maps.image.change, oracle.T, atol=1e-4)
    assert (ranks(AsIs().fit(given), given)[0] < 1).mean() < 0.3 < 0.9 < (ranks(maps, given)[0] < 1).mean()


def test_residual_maps_begin_as_the_centred_model_and_learn() -> None:
    given = pairs(60, turn=True, noise=0.3)
    held = pairs(60, turn=True, noise=0.3)  # the same world: other pictures of it
    start, *path = Residual(lr=1e-12).path(given, [1, 2])
    assert np.allclose(start.image(given.x), Centred().fit(given).image(given.x), atol=1e-6) and path
    trained = Residual(epochs=200, lr=1e-2).fit(given)
    assert (ranks(trained, held)[0] < 1).mean() > 2 * (ranks(Centred().fit(given), held)[0] < 1).mean()
    once, twice = Residual().path(given, [5, 15])
    assert np.array_equal(Residual(epochs=15).fit(given).image.change, twice.image.change)
    assert not np.array_equal(once.image.change, twice.image.change)


def test_nothing_is_learned_from_unrelated_captions() -> None:
    """Captions of other pictures: no way may find more than chance, since every picture is tested unseen."""
    given = pairs(100, noise=0.3)
    rng = np.random.default_rng(1)
    wrong = Pairs(given.x, unit_rows(rng.normal(size=given.t.shape)).astype(np.float32), given.owner, given.groups)
    for way in MAP_WAYS:
        credit = np.array([c == "1" for c in judged(way, wrong)["credits"][METRICS[0]]])
        assert abs(credit.mean() - 1 / 20) < 0.045, way  # 200 captions, among 20


def test_near_duplicates_stay_in_one_fold() -> None:
    folds = outer_folds(np.repeat(np.arange(25), 4))
    assert all(len(set(folds[i * 4 : i * 4 + 4])) == 1 for i in range(25)) and set(folds) == set(range(5))


def test_settings_are_chosen_within_the_pairs() -> None:
    setting, score = chosen_settings(Rotated, pairs(60, turn=True, noise=0.2))
    assert setting["share"] >= 0.75 and score > 0.5


def test_maps_are_saved_as_they_are(tmp_path: Path) -> None:
    class Base:
        name, key = "base", None
        capabilities = frozenset({"embed_image", "embed_text"})

    maps = Maps(SideMap(np.arange(3.0), np.ones((3, 3))), SideMap.identity(3))
    MappedModel("m", Base(), maps).save(tmp_path, "somewhere")  # type: ignore[arg-type]
    again = MappedModel.load(tmp_path, lambda address, device: Base())  # type: ignore[arg-type,return-value]
    assert np.array_equal(again.maps.image.change, np.ones((3, 3))) and again.maps.text.centre.tolist() == [0, 0, 0]


# --- what to expect of the winner ---


def chance_cells(ways: int, n: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Ways that are right by chance; their inner score in a fold is what they achieve on the other folds."""
    outer = np.arange(n) % 5
    cells = []
    for way in range(ways):
        right = rng.random(n) < 0.3
        inner = [float(right[outer != f].mean()) for f in range(5)]
        credits = {m: "".join(str(int(c)) for c in right) for m in METRICS}
        cells.append(
            {"model": "m", "way": f"way {way:02d}" if way else "as-is", "seed": 0, "credits": credits, "settings": [{}], "seconds": 1.0,
             "inner": float(np.mean(inner)), "inner_of_folds": inner, "outer": outer.tolist(), "among": [n // 5, n // 5]}
        )  # fmt: skip
    return cells


def test_the_choice_is_not_judged_by_the_pictures_that_made_it() -> None:
    """Of many ways that are right by chance, the winner's own number is too good; that of choosing anew in each fold is not."""
    own, chosen = [], []
    clusters = {m: [str(i) for i in range(100)] for m in METRICS}
    for seed in range(20):
        cells = chance_cells(21, 100, np.random.default_rng(seed))
        found = verdict_of(cells, clusters, np.arange(100))
        own.append(next(r for r in found["rows"] if (r["model"], r["way"]) == found["winner"])["metrics"][METRICS[0]]["mean"])
        chosen.append(found["choice"]["mean"])
        as_is = np.mean([c == "1" for c in cells[0]["credits"][METRICS[0]]])
        assert found["gain"]["difference"] == pytest.approx(found["choice"]["mean"] - as_is)
    error = np.std(chosen) / np.sqrt(20)
    assert np.mean(own) > 0.3 + 5 * error and np.mean(chosen) < 0.3 + 3 * error


def test_choosing_in_folds_by_hand() -> None:
    """Two captions a picture; in the first fold the first way is ahead, in the second the other."""

    def cell(credits: str, inner: list[float]) -> dict[str, Any]:
        return {"credits": {METRICS[0]: credits}, "inner_of_folds": inner, "outer": [0, 1, 0]}

    keys = [("m", "a"), ("m", "b")]
    table = {keys[0]: {0: cell("111000", [0.9, 0.1])}, keys[1]: {0: cell("000111", [0.5, 0.2])}}
    credits, picks = chosen_in_folds(table, keys, np.array([0, 0, 1, 1, 2, 2]))
    assert credits == {0: "110100"} and picks == {"a on m": 1, "b on m": 1}
