"""The quantizer: codes against brute force, the gradient through them, dead codes, what training makes of scenes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diptych.config.recipe import LIBRARY
from diptych.core.errors import DiptychError, Interrupted
from diptych.data.loader import loader_for
from diptych.data.sources import open_source
from diptych.data.text import Tokenizer
from diptych.models.build import SIZES, Build
from diptych.models.vision.quantizer import VectorQuantizer, nearest_code, straight_through
from diptych.models.vlm import build_model
from diptych.objectives import build_objectives
from diptych.objectives.vqvae import codebook_loss, perplexity, psnr
from diptych.training.checkpoint import checkpoints
from diptych.training.distributed import Cluster
from diptych.training.flops import FlopMeter
from diptych.training.gradient import BatchGradient, Pieces, Share
from diptych.training.loop import Trainer, train


def quantizer(image_size=16, **options):
    torch.manual_seed(0)
    build = Build(SIZES["tiny"], image_size, None, where="parts.quantizer")
    return VectorQuantizer(build, **{"vocabulary": 32, "width": 16, "depth": 1, "patch": 4, "code_width": 4, **options})


def recipe(budget, batch_size=16, **part):
    part = {"kind": "vq", "vocabulary": 64, "width": 32, "depth": 1, **part}
    stage = {"objectives": {"reconstruction": 1}, "batch_size": batch_size, "optimizer": "adamw", "lr": 0.003, "warmup": 5}
    tree = {"name": "vq", "paradigm": "generative", "parts": {"quantizer": part}, "stages": [stage]}
    return LIBRARY.check({**tree, "budget": budget, "precision": "fp32", "data": {"train": "scenes:small"}}, "vq")


def test_codes_are_the_nearest_by_brute_force():
    rng = np.random.default_rng(0)
    features, codebook = rng.normal(size=(2, 9, 4)), rng.normal(size=(20, 4))
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    codebook /= np.linalg.norm(codebook, axis=-1, keepdims=True)
    brute = ((features[:, :, None] - codebook) ** 2).sum(-1).argmin(-1)
    assert np.array_equal(nearest_code(torch.from_numpy(features), torch.from_numpy(codebook)).numpy(), brute)


def test_codes_and_pictures_have_the_shapes_they_say():
    q = quantizer().eval()
    pixels = torch.rand(3, 3, 16, 16) * 2 - 1
    ids = q.codes(pixels)
    assert q.grid == (4, 4) and q.tokens == 16 and ids.shape == (3, 16) and int(ids.max()) < q.vocabulary
    out = q(pixels)
    assert torch.equal(out.ids, ids) and out.pixels.shape == pixels.shape
    torch.testing.assert_close(q.decode(ids), out.pixels)
    torch.testing.assert_close(out.features.norm(dim=-1), torch.ones(3, 16))
    with pytest.raises(DiptychError, match=r"parts.quantizer: images of 18 pixels cannot be cut into squares of 4"):
        quantizer(image_size=18)


def test_a_code_knows_of_its_own_place_first_and_the_grid_runs_row_by_row():
    """Changing one corner changes codes near it and none at the far end."""
    q = quantizer(32).eval()
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    changed = pixels.clone()
    changed[:, :, :4, 28:] = -changed[:, :, :4, 28:]
    moved = (q.features(pixels) - q.features(changed)).norm(dim=-1).view(8, 8)
    assert moved[0, 7] > 0 and moved[0, 7] == moved.max() and not moved[4:].any() and not moved[:, :4].any()


def test_the_gradient_passes_straight_through_the_codes():
    features, chosen = (torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight = torch.randn(2, 3, 4, dtype=torch.float64)
    out = straight_through(features, chosen)
    torch.testing.assert_close(out, chosen, atol=1e-12, rtol=0)
    (out * weight).sum().backward()
    torch.testing.assert_close(features.grad, weight)
    assert chosen.grad is None


def test_codebook_loss_equals_the_reference_and_pulls_each_side_by_its_own_term():
    rng = np.random.default_rng(0)
    z, e = rng.normal(size=(2, 5, 4)), rng.normal(size=(2, 5, 4))
    features, chosen = (torch.from_numpy(x).requires_grad_() for x in (z, e))
    loss = codebook_loss(features, chosen, 0.25)
    assert loss.item() == pytest.approx(1.25 * ((z - e) ** 2).mean(), abs=1e-12)
    loss.backward()
    np.testing.assert_allclose(features.grad.numpy(), 0.25 * 2 * (z - e) / z.size, atol=1e-12)
    np.testing.assert_allclose(chosen.grad.numpy(), 2 * (e - z) / z.size, atol=1e-12)


def test_the_objective_has_the_gradient_of_finite_differences():
    """In what lies after the rounding; the rounding itself has none, which is why there is a straight way through."""
    q = quantizer(8, width=8, vocabulary=8).eval()
    pixels = torch.rand(2, 3, 8, 8) * 2 - 1
    codes = q.codes_of_unit_length[q.codes(pixels)].detach().double()
    q.decoder.double()
    weight = q.decoder[0].weight

    def loss():
        return torch.nn.functional.mse_loss(q.paint(codes), pixels.double())

    loss().backward()
    for index in [(0, 0, 1, 1), (5, 2, 0, 2)]:
        with torch.no_grad():
            values = []
            for step in (1e-5, -2e-5):
                weight[index] += step
                values.append(loss().item())
            weight[index] += 1e-5
        assert weight.grad[index].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-3, abs=1e-8)


def test_dead_codes_split_the_busiest():
    q = quantizer(vocabulary=8, patience=3)
    counts = torch.tensor([50.0, 0, 30, 0, 5, 5, 5, 5])
    assert [q.end_step(counts) for _ in range(2)] == [0, 0]
    before = q.codes_of_unit_length.clone()
    assert q.end_step(counts) == 2
    after = q.codes_of_unit_length
    cosine = after @ before.T
    assert cosine[1, 0] > 0.99 and cosine[3, 2] > 0.99, "beside the busiest and the second"
    alive = [0, 2, 4, 5, 6, 7]
    torch.testing.assert_close(after[alive], before[alive])
    assert q.use[1] == q.use[0] and not q.idle.any()
    assert q.end_step(torch.ones(8)) == 0


def test_no_more_codes_are_revived_than_there_are_donors():
    q = quantizer(vocabulary=8, patience=1)
    assert q.end_step(torch.tensor([9.0, 0, 0, 0, 0, 0, 0, 0])) == 1
    assert len(torch.unique(q.codebook.detach(), dim=0)) == 8


def test_perplexity_and_psnr():
    assert perplexity(torch.tensor([3, 3, 0, 3, 3])) == pytest.approx(4.0)
    assert perplexity(torch.tensor([7, 0])) == pytest.approx(1.0)
    assert psnr(0.04) == pytest.approx(20.0)


@pytest.mark.parametrize("micro", [3, 6])
def test_micro_batches_give_gradient_and_counts_of_the_whole_batch(micro):
    given = recipe("1k samples")
    source = open_source("scenes:small").split("train")
    tokenizer = Tokenizer.train(["a red fox", "two keys"], 300, 16)
    loader = loader_for(source, tokenizer, 48, 12, 0)
    found = []
    for size in (None, micro):
        torch.manual_seed(0)
        model = build_model(given, tokenizer, 48).train()
        objectives = build_objectives(given, model).train()
        BatchGradient(model, Cluster(), False, 0, FlopMeter())(
            0, Pieces(Share(loader, 0, Cluster(), size), 0), objectives, {"reconstruction": 1.0}
        )
        q = model.part("quantizer")
        counts = q.counts.clone()
        objectives["reconstruction"].after_step(Cluster().total)
        found.append((counts, {n: p.grad for n, p in model.named_parameters()}, objectives["reconstruction"].metrics()))
        assert not q.counts.any()
    (counts, whole, noted), (again, pieces, pieces_noted) = found
    assert int(counts.sum()) == 12 * 36 and torch.equal(counts, again)
    assert pieces_noted == pytest.approx(noted, rel=1e-4)
    for name, gradient in whole.items():
        torch.testing.assert_close(pieces[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_a_resumed_run_has_the_codes_of_an_uninterrupted_one(tmp_path):
    given = recipe("192 samples", patience=2)
    train(given, tmp_path / "whole")

    class Stopper(Trainer):
        def _update(self, *args):
            if self.step == 5:
                self.stop = "SIGINT"
            return super()._update(*args)

    with pytest.raises(Interrupted):
        Stopper(given, tmp_path / "halves").run()
    train(given, tmp_path / "halves", resume=True)
    for file in ("model", "ema", "optimizer"):
        a, b = (load_file(checkpoints(tmp_path / d / "checkpoints")[-1] / f"{file}.safetensors") for d in ("whole", "halves"))
        assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
        if file == "model":
            assert {"parts.quantizer.idle", "parts.quantizer.use"} <= set(a)


def test_pictures_become_clearer_and_codes_come_into_use(tmp_path):
    rows = []
    train(recipe("3k samples", 32, patch=4, patience=5), tmp_path / "run", progress=rows.append)
    first, last = rows[0]["losses"], rows[-1]["losses"]
    assert last["reconstruction_psnr"] > max(first["reconstruction_psnr"] + 5, 15), (first, last)
    assert last["reconstruction_codes_used"] > 0.8 and last["reconstruction_perplexity"] > 16, last
    assert sum(row["losses"]["reconstruction_codes_revived"] for row in rows) > 0
