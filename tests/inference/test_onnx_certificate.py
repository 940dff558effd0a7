"""The certificate finds what one comparison of one batch does not, and is made again by --check."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cli_fixture
from cli_fixture import Cli
from diptych.benchmarks.statistics import paired_test
from diptych.core.files import read_json, write_json
from diptych.inference.onnx import export as exporting
from diptych.inference.onnx.certificate import Certificate, Refused, certify
from diptych.inference.onnx.files import hashes
from diptych.inference.onnx.runtime import OnnxModel
from diptych.inference.onnx.towers import RunImage
from diptych.inference.run import TrainedModel
from onnx_fixture import DATA, exported, pictures, sentences, untrained

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
cli = cli_fixture.cli
CLIP = ["parts.vision.kind=clip", "parts.text.kind=clip", "parts.vision.patch=16"]


@pytest.fixture(scope="module")
def clip() -> TrainedModel:
    return untrained("clip", CLIP)


@pytest.fixture(scope="module")
def out(clip: TrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(clip, tmp_path_factory.mktemp("onnx") / "fp32").path


@pytest.fixture(scope="module")
def int8(clip: TrainedModel, tmp_path_factory: pytest.TempPathFactory) -> exporting.ExportedOnnx:
    return exported(clip, tmp_path_factory.mktemp("onnx") / "int8", "int8")


def planted(source: Path, place: Path, change: Callable[[Path], None]) -> Path:
    """A copy of an export with one thing changed, and hashes that fit."""
    place.mkdir()
    for file in source.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    change(place)
    write_json(place / "diptych-onnx.json", {**read_json(place / "diptych-onnx.json"), "files": hashes(place)})
    return place


def judged(model: TrainedModel, folder: Path) -> Certificate:
    return certify(model, folder, paired_test, threads=1, seconds=0)


def test_a_frozen_batch_size_is_caught(clip: TrainedModel, out: Path, tmp_path: Path) -> None:
    def freeze(folder: Path) -> None:
        side = clip.model.image_size
        pixels = torch.zeros(2, side, side, 3, dtype=torch.uint8)
        with torch.no_grad():
            program = torch.onnx.export(
                RunImage(clip.model).eval(), (pixels,), dynamo=True, input_names=["pixels"], output_names=["v"], verbose=False
            )
        assert program is not None
        program.save(str(folder / "image.onnx"))

    frozen = planted(out, tmp_path / "frozen", freeze)
    shown = pictures(2)
    two = OnnxModel(frozen, threads=1, checked=False).embed_image(shown)
    assert np.allclose(two, clip.embed_image(shown), atol=1e-4)  # the comparison that everyone makes
    found = judged(clip, frozen)
    assert not found.passed
    failed = {f.partition(":")[0] for f in found.failures}
    assert {"image, batch of 1", "image, batch of 7"} <= failed and "image, batch of 2" not in failed
    assert not any(f.startswith("text") for f in failed)


def test_a_vector_that_depends_on_its_batch_is_caught(clip: TrainedModel, out: Path, tmp_path: Path) -> None:
    def mix(folder: Path) -> None:
        """Adds 0.001 times what the largest entry of the batch is: alone, hardly another direction."""
        graph = onnx.load(str(folder / "image.onnx"))
        name = graph.graph.output[0].name
        for node in graph.graph.node:
            node.output[:] = ["before" if o == name else o for o in node.output]
        make = onnx.helper.make_node
        graph.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(3e-5), "share"))
        graph.graph.node.extend(
            [
                make("ReduceSum", ["before"], ["all"], keepdims=0),
                make("Mul", ["all", "share"], ["part"]),
                make("Add", ["before", "part"], [name]),
            ]
        )
        onnx.save(graph, str(folder / "image.onnx"))

    found = judged(clip, planted(out, tmp_path / "mixed", mix))
    assert any("alone and in a batch" in f for f in found.failures), found.failures


@pytest.mark.slow
def test_int8_keeps_its_bounds(clip: TrainedModel, int8: exporting.ExportedOnnx) -> None:
    model = OnnxModel(int8.path, threads=1)
    kinds = {n.op_type for n in onnx.load(str(int8.path / "text.onnx")).graph.node}
    assert "QuantizeLinear" in kinds and int8.certificate.passed
    texts = sentences(20, 8, seed=9)
    cosines = (model.embed_text(texts) * clip.embed_text(texts)).sum(1)
    assert 0.95 < cosines.mean() < 1 - 1e-6  # it is another graph, and near
    assert model.facts["sides"] == {"image": "int8", "text": "int8"}
    np.testing.assert_allclose(np.linalg.norm(model.embed_text(texts), axis=1), 1, atol=1e-6)
    alone = np.concatenate([model.embed_text([t]) for t in texts])
    np.testing.assert_allclose(alone, model.embed_text(texts), atol=1e-5)  # ranges are fixed, not those of the batch


@pytest.mark.slow
def test_damage_by_int8_that_one_comparison_misses_is_caught(
    clip: TrainedModel, int8: exporting.ExportedOnnx, tmp_path: Path
) -> None:
    places = clip.model.parts["text"].positions.detach().numpy()  # type: ignore[union-attr, operator]

    def damage(folder: Path) -> None:
        """The scale of the positions from the tenth on is wrong by a factor of 8: no short caption reaches them."""
        graph = onnx.load(str(folder / "text.onnx"))
        arrays = {t.name: onnx.numpy_helper.to_array(t) for t in graph.graph.initializer}
        (found,) = [t for t in graph.graph.initializer if np.array_equal(arrays[t.name], places)]
        values = arrays[found.name].copy()
        values[9:] *= 8
        found.CopyFrom(onnx.numpy_helper.from_array(values, found.name))
        onnx.save(graph, str(folder / "text.onnx"))

    hurt = planted(int8.path, tmp_path / "hurt", damage)
    short = sentences(16, 2, seed=4)
    a, b = OnnxModel(hurt, threads=1, checked=False).embed_text(short), OnnxModel(int8.path, threads=1).embed_text(short)
    assert np.allclose(a, b, atol=1e-6) and np.allclose(a, clip.embed_text(short), atol=0.1)
    found = judged(clip, hurt)
    assert not found.passed and all(f.startswith("text") for f in found.failures)
    assert not any(f.startswith(("text, 0 words", "text, 1 words")) for f in found.failures)


def test_a_refused_export_leaves_nothing(clip: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = exporting._graphs

    def worse(folder: Path, *more: Any) -> Any:
        sides = real(folder, *more)
        graph = onnx.load(str(folder / "text.onnx"))
        weights = [t for t in graph.graph.initializer if len(t.dims) == 2 and min(t.dims) > 4]
        values = onnx.numpy_helper.to_array(weights[0]) * 1.01
        weights[0].CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), weights[0].name))
        onnx.save(graph, str(folder / "text.onnx"))
        return sides

    monkeypatch.setattr(exporting, "_graphs", worse)
    with pytest.raises(Refused, match=r"in fp32 is refused: text, batch of"):
        exported(clip, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_certificate_says_what_was_measured(out: Path, clip: TrainedModel) -> None:
    data = read_json(out / "certificate.json")
    assert data["passed"] and data["data"] == DATA and data["files"] == hashes(out)
    assert data["versions"].keys() >= {"torch", "onnx", "onnxruntime", "diptych"} and data["threads"] == 1
    rows = {(r["side"], r["what"]): r for r in data["groups"]}
    words = [what for side, what in rows if side == "text" and "tokens" in what]
    assert words[0] == "0 words, 2 to 2 tokens" and words[-1].endswith("16 to 16 tokens")  # to the longest text
    assert max(r["largest"] for r in rows.values()) == max(w["largest"] for w in data["worst"]) < 1e-5
    for r in data["recall"]:
        assert (
            r["n"] == 24 and r["difference"] == pytest.approx(r["onnx"] - r["torch"]) and r["low"] <= r["difference"] <= r["high"]
        )
    assert {(r["direction"], r["k"]) for r in data["recall"]} == {
        (d, k) for d in ("text to image", "image to text") for k in (1, 10)
    }


def test_recall_is_that_of_a_plain_loop(clip: TrainedModel, out: Path) -> None:
    images, captions = exporting.samples(DATA, "test", 24)
    scores = clip.embed_text(captions).astype(np.float64) @ clip.embed_image(images).T
    hits = []
    for i, row in enumerate(scores):
        best = sorted(range(len(row)), key=lambda j: (-row[j], j))[:10]
        hits.append(any(captions[j].lower().rstrip(".") == captions[i].lower().rstrip(".") for j in best))
    (found,) = [r for r in read_json(out / "certificate.json")["recall"] if (r["direction"], r["k"]) == ("text to image", 10)]
    assert found["torch"] == pytest.approx(np.mean(hits))


@pytest.mark.slow
def test_fp16_is_smaller_and_near(clip: TrainedModel, out: Path, tmp_path: Path) -> None:
    half = exported(clip, tmp_path / "fp16", "fp16")
    assert half.certificate.passed and half.certificate.worst("image").largest > 0
    for name in ("image.onnx", "text.onnx"):
        assert (half.path / name).stat().st_size < (out / name).stat().st_size
        weights = [t for t in onnx.load(str(half.path / name)).graph.initializer if np.prod(t.dims) > 100]
        assert {t.data_type for t in weights} == {onnx.TensorProto.FLOAT16}


@pytest.mark.slow
def test_openvino_reads_the_same_graphs(clip: TrainedModel, out: Path) -> None:
    pytest.importorskip("openvino")
    found, plain = OnnxModel(out, "openvino", 1), OnnxModel(out, threads=1)
    np.testing.assert_allclose(found.embed_image(pictures(5)), clip.embed_image(pictures(5)), atol=1e-4)
    np.testing.assert_allclose(found.embed_text(sentences(5)), clip.embed_text(sentences(5)), atol=1e-4)
    assert found.key != plain.key and found.key.startswith(plain.key)


@pytest.mark.slow
def test_the_command(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = [x for s in (*CLIP, "parts.vision.width=16", "parts.text.width=16", "stages.0.batch_size=8") for x in ("--set", s)]
    assert cli("train", "clip", "--data", DATA, "--budget", "16 samples", "--out", "run", *small).code == 0
    done = cli("export", "run", "--to", "onnx")
    assert done.code == 0 and "the certificate is passed" in done.out, done.all
    assert "text to image @10" in done.out and "milliseconds a call" in done.out
    again = cli("export", "run/export/onnx", "--check", "--json")
    assert again.code == 0 and json.loads(again.out)["worst"]["image"]["largest"] < 1e-4
    named = cli("embed", "run/export/onnx", DATA, "--text", "--limit", "8", "--out", "vectors.npy")
    assert named.code == 0, named.all
    # a model that is another one now
    (run,) = (tmp_path / "run" / "checkpoints").glob("step-*/model.safetensors")
    run.write_bytes(run.read_bytes()[:-4] + b"\0\0\1\1")
    changed = cli("export", "run/export/onnx", "--check")
    assert changed.code == 1 and "has other weights now" in changed.err
    wrong = cli("export", "run/export/onnx", "--check", "--runtime", "onnxrt")
    assert wrong.code == 1 and "valid: onnxruntime, openvino" in wrong.err


@pytest.mark.slow
def test_a_directory_that_fails_its_check_is_marked(
    clip: TrainedModel, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blur(folder: Path) -> None:
        graph = onnx.load(str(folder / "image.onnx"))
        (first,) = [t for t in graph.graph.initializer if list(t.dims) == [16, 3, 16, 16]]
        values = onnx.numpy_helper.to_array(first) * np.float32(1.1)
        first.CopyFrom(onnx.numpy_helper.from_array(values, first.name))
        onnx.save(graph, str(folder / "image.onnx"))

    folder = planted(out, tmp_path / "blurred", blur)
    monkeypatch.setattr(exporting, "load", lambda address, device="auto": clip)
    with pytest.raises(Refused, match="image, batch of"):
        exporting.check_onnx(folder, paired_test, threads=1, seconds=0, limit=16)
    assert read_json(folder / "certificate.json")["passed"] is False
    with pytest.raises(Exception, match="certificate was refused"):
        OnnxModel(folder)
