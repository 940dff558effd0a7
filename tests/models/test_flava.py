"""FLAVA: against transformers' FlavaForPreTraining, against NumPy, and what must not leak."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from batch_fixture import batch_of
from diptych.core.batch import Batch, Images
from diptych.core.encodings import Pass
from diptych.core.errors import DiptychError
from diptych.data.fields import UNPAIRED, Context, build_fields
from diptych.data.loader import Loader
from diptych.interop.families.flava import from_transformers
from diptych.models.build import SIZES, Build
from diptych.objectives.flava import normed
from engine_fixture import Little

WORDS = 60


class Words:
    pad, bos, eos, mask = range(4)
    max_length = 12

    def __len__(self) -> int:
        return WORDS


@pytest.fixture(scope="module")
def theirs() -> Any:
    from transformers import FlavaConfig, FlavaForPreTraining

    torch.manual_seed(0)
    tower = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = FlavaConfig(
        image_config={**tower, "image_size": 32, "patch_size": 8, "vocab_size": 50},
        text_config={**tower, "vocab_size": WORDS, "max_position_embeddings": 12},
        multimodal_config=tower,
        image_codebook_config={"num_groups": 1, "hidden_size": 8, "vocab_size": 50},
        hidden_size=32,
        projection_dim=24,
        init_codebook=False,
        skip_unmasked_multimodal_encoder=False,
        global_backprop_contrastive=False,
    )
    model = FlavaForPreTraining(config).eval()
    for p in model.parameters():  # class and mask tokens begin as zeros, which would hide a mistake
        p.data = torch.randn_like(p) * 0.2
    return model


@pytest.fixture(scope="module")
def ours(theirs: Any) -> Any:
    from diptych.config.recipe import load_recipe
    from diptych.models.vlm import build_model
    from diptych.objectives import build_objectives

    tower = {"width": 32, "depth": 2, "heads": 4, "hidden": 64, "eps": 1e-12}
    recipe = load_recipe(
        "flava",
        {
            "embed_dim": 24,
            "parts.quantizer": {"kind": "vq", "vocabulary": 50, "patch": 8, "width": 16},
            "parts.vision": {"kind": "class", "patch": 8, "mask_token": True, "bare": True, **tower},
            "parts.text": {"kind": "bert", "post_norm": False, "bare": True, **tower},
            "parts.fusion": {"kind": "joint", "activation": "gelu", **tower},
            "stages.1.objectives.matching.pooler": "tanh",
        },
    )
    model = build_model(recipe, Words(), 32)
    objectives = build_objectives(recipe, model)
    from_transformers(theirs.state_dict(), model, objectives)
    return model.eval(), objectives.eval()


@pytest.fixture(scope="module")
def given() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(4, WORDS, (3, 9))
    mask = torch.arange(9) < torch.tensor([9, 6, 4])[:, None]
    ids = ids.masked_fill(~mask, 0)
    words = torch.zeros_like(mask)
    words[:, 2:4] = True
    return {
        "pixels": torch.rand(3, 3, 32, 32) * 2 - 1, "ids": ids, "mask": mask, "words": words, "masked": ids.masked_fill(words, 3),
        "patches": torch.rand(3, 16).argsort(1) < 6, "codes": torch.randint(0, 50, (3, 16)),
    }  # fmt: skip


def reference(theirs: Any, g: dict[str, torch.Tensor], **without: Any) -> Any:
    given = {
        "input_ids": g["ids"], "input_ids_masked": g["masked"], "pixel_values": g["pixels"], "attention_mask": g["mask"].long(),
        "bool_masked_pos": g["patches"], "mim_labels": g["codes"].clone(), "mlm_labels": g["ids"].masked_fill(~g["words"], -100),
        "itm_labels": torch.ones(len(g["ids"]), dtype=torch.long), "return_loss": True,
    }  # fmt: skip
    with torch.no_grad():
        return theirs(**{**given, **without})


def masked(p: Pass, ids: torch.Tensor, hidden: torch.Tensor) -> Pass:
    """The same batch with the ids ``ids`` [B, T] read instead, and a mask token in place of the patches ``hidden`` [B, N]."""
    return p.view(text=replace(p["text"], ids=ids), image=replace(p["image"], hidden=hidden))


def image_tokens(model: Any, pixels: torch.Tensor, hidden: torch.Tensor | None = None) -> torch.Tensor:
    tokens: torch.Tensor = model.encode(Batch({"image": Images(pixels, hidden=hidden)}, len(pixels)))["image.tokens"].tokens
    return tokens


def test_encoders_and_losses_of_pairs_equal_transformers(theirs: Any, ours: Any, given: dict[str, torch.Tensor]) -> None:
    model, objectives = ours
    g, out = given, reference(theirs, given)
    close = {"atol": 1e-5, "rtol": 1e-5}
    p = model.encode(batch_of(g["pixels"], g["ids"], g["mask"]))
    vision, text = model.part("vision"), model.part("text")
    torch.testing.assert_close(normed(vision, p["image.tokens"].tokens), out.image_embeddings, **close)
    real = g["mask"]
    torch.testing.assert_close(normed(text, p["text.tokens"].tokens)[real], out.text_embeddings[real], **close)
    view = masked(p, g["masked"], g["patches"])
    fused = out.multimodal_masked_embeddings
    torch.testing.assert_close(view["image.fused"].tokens, fused[:, 1:18], **close)
    torch.testing.assert_close(view["text.fused"].tokens[real], fused[:, 18:][real], **close)
    torch.testing.assert_close(view["text.fused"].pooled, fused[:, 0], **close)
    # losses
    both = objectives["masked_both"]
    codes = both.image_head(view["image.fused"].tokens[:, 1:][g["patches"]])
    assert torch.nn.functional.cross_entropy(codes, g["codes"][g["patches"]]).item() == pytest.approx(
        out.loss_info.mmm_image.item(), abs=1e-5
    )
    words = both.text_head(view["text.fused"].tokens[g["words"]])
    assert torch.nn.functional.cross_entropy(words, g["ids"][g["words"]]).item() == pytest.approx(
        out.loss_info.mmm_text.item(), abs=1e-5
    )
    odds = objectives["matching"].logits(view)
    torch.testing.assert_close(odds, out.itm_logits[:, 1] - out.itm_logits[:, 0], **close)
    assert torch.nn.functional.binary_cross_entropy_with_logits(odds, torch.ones(3)).item() == pytest.approx(
        out.loss_info.itm.item(), abs=1e-5
    )
    assert objectives["info_nce"](p).item() == pytest.approx(out.loss_info.global_contrastive.item(), abs=1e-5)


def test_losses_of_what_has_no_partner_equal_transformers(theirs: Any, ours: Any, given: dict[str, torch.Tensor]) -> None:
    model, objectives = ours
    g = given
    images = reference(theirs, g, input_ids=None, input_ids_masked=None, attention_mask=None, mlm_labels=None, itm_labels=None)
    x = image_tokens(model, g["pixels"], g["patches"])[:, 1:]
    logits = objectives["masked_codes"].head(normed(model.part("vision"), x[g["patches"]]))
    assert torch.nn.functional.cross_entropy(logits, g["codes"][g["patches"]]).item() == pytest.approx(
        images.loss_info.mim.item(), abs=1e-5
    )
    texts = reference(theirs, g, pixel_values=None, bool_masked_pos=None, mim_labels=None, itm_labels=None)
    x = model.encode(batch_of(text=g["masked"], text_mask=g["mask"]))["text.tokens"].tokens
    logits = objectives["masked_text"].head(normed(model.part("text"), x[g["words"]]))
    assert torch.nn.functional.cross_entropy(logits, g["ids"][g["words"]]).item() == pytest.approx(
        texts.loss_info.mlm.item(), abs=1e-5
    )


def test_what_is_hidden_cannot_be_seen(ours: Any, given: dict[str, torch.Tensor]) -> None:
    model, _ = ours
    hidden = torch.zeros(1, 16, dtype=torch.bool)
    hidden[0, 5] = True  # the patch at row 1, column 1
    pixels = given["pixels"][:1]
    changed = pixels.clone()
    changed[:, :, 8:16, 8:16] = 1.0
    seen = [image_tokens(model, x, hidden) for x in (pixels, changed)]
    assert torch.equal(*seen)
    assert not torch.equal(*(image_tokens(model, x) for x in (pixels, changed)))


def test_padding_changes_nothing(ours: Any, given: dict[str, torch.Tensor]) -> None:
    model, _ = ours
    g = given
    short = model.encode(batch_of(g["pixels"][2:], g["ids"][2:, :4], g["mask"][2:, :4]))
    whole = model.encode(batch_of(g["pixels"], g["ids"], g["mask"]))
    torch.testing.assert_close(short["text.fused"].tokens[0], whole["text.fused"].tokens[2, :4], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(short["image.fused"].tokens[0], whole["image.fused"].tokens[2], atol=1e-5, rtol=1e-5)


def test_mean_of_pairs_equals_the_reference(ours: Any, given: dict[str, torch.Tensor]) -> None:
    """NumPy, float64, with what the objective draws drawn again."""
    model, objectives = ours
    objective = objectives["masked_both"]
    batch = batch_of(pixels=given["pixels"], text=given["ids"], text_mask=given["mask"])
    torch.manual_seed(5)
    loss = objective(model.encode(batch)).item()
    torch.manual_seed(5)
    from diptych.objectives.maskvlm import mask_words

    p = model.encode(batch)
    rows = p.some(objective.batch_share)
    p = p.pairs(image=rows, text=rows)
    ids, words = mask_words(p["text"].ids, p["text"].mask, objective.text_share, objective.replace, WORDS)
    patches = objective.hide(len(ids), ids.device)
    view = masked(p, ids, patches)
    codes = model.part("quantizer").codes(p["image"].floats).numpy()

    def surprise(logits: torch.Tensor, target: int) -> float:
        x = logits.detach().numpy().astype(np.float64)
        return float(np.log(np.exp(x - x.max()).sum()) + x.max() - x[target])

    total = 0.0
    for i in range(len(ids)):
        seen = [
            surprise(objective.image_head(view["image.fused"].tokens[i, 1 + n]), codes[i, n]) for n in range(16) if patches[i, n]
        ]
        said = [
            surprise(objective.text_head(view["text.fused"].tokens[i, t]), int(p["text"].ids[i, t]))
            for t in range(9)
            if words[i, t]
        ]
        total += np.mean(seen) + np.mean(said)
    assert loss == pytest.approx(total / len(ids), rel=1e-5)


def test_what_has_no_partner_teaches_its_own_encoder_alone() -> None:
    little = Little("flava", stage="main")
    batch = next(iter(little.loader.stream(0)))
    turned = Images(batch["image"].pixels.flip(0))
    lone = batch.with_(unpaired_image=turned, unpaired_text=batch["text"])
    for name, mine, other in (("masked_codes", "vision", "text"), ("masked_text", "text", "vision")):
        little.model.zero_grad()
        little.objectives[name](little.model.encode(lone)).backward()
        assert any(p.grad is not None and bool(p.grad.any()) for p in little.model.part(mine).parameters())
        assert all(p.grad is None for p in little.model.part(other).parameters())
    torch.manual_seed(0)
    alone = little.objectives["masked_codes"](little.model.encode(lone))
    torch.manual_seed(0)
    swapped = little.objectives["masked_codes"](little.model.encode(batch.with_(image=turned)))
    torch.testing.assert_close(alone, swapped)


def test_unpaired_data_joins_the_batches_and_pieces_of_them(tmp_path: Any) -> None:
    import diptych as dp

    small = {
        "data.unpaired": {"image": "scenes:small", "text": "scenes:small"}, "stages.0.batch_size": 8, "stages.1.batch_size": 8, "stages.1.micro_batch": 4,
        "parts.vision.depth": 1, "parts.text.depth": 1, "parts.fusion.depth": 1, "parts.quantizer.width": 16,
    }  # fmt: skip
    run = dp.train("flava", data="scenes:small", budget="64 samples", out=tmp_path / "run", set=small)
    assert run.spent["finished"]
    assert dp.load(run.path).embed_text(["a red fox"]).shape == (1, 128)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: Any) -> Any:
    """A few steps of the recipe on a small model."""
    import diptych as dp

    small = {
        "stages.0.batch_size": 16, "stages.1.batch_size": 16, "parts.quantizer.width": 16, "data.tokenizer.vocab_size": 320, "precision": "fp32",
        "trackers": [], **{f"parts.{p}.{k}": v for p in ("vision", "text", "fusion") for k, v in {"depth": 2, "width": 32, "heads": 2}.items()},
    }  # fmt: skip
    return dp.train("flava", data="scenes:small", budget="96 samples", out=tmp_path_factory.mktemp("flava") / "run", set=small).path


def of_pictures(path: Any, size: int) -> tuple[list[np.ndarray], list[str], Any]:
    """Two pictures, two texts, and what an export's processor makes of them."""
    from PIL import Image
    from transformers import AutoProcessor

    texts = ["a red fox", "two green keys to the left of a big yellow house"]
    images = [np.random.default_rng(i).integers(0, 256, (size, size, 3), dtype=np.uint8) for i in range(2)]
    inputs = AutoProcessor.from_pretrained(path)(
        images=[Image.fromarray(i) for i in images], text=texts, padding=True, return_tensors="pt"
    )
    return images, texts, inputs


def test_an_export_computes_what_the_run_does(trained: Any, tmp_path: Any) -> None:
    from transformers import AutoModel

    from diptych.inference.export import export
    from diptych.inference.run import TrainedModel

    ours, made = TrainedModel.load(trained, "cpu"), export(trained, out=tmp_path / "export")
    model, info = AutoModel.from_pretrained(made.path, output_loading_info=True)
    assert type(model).__name__ == made.architecture == "FlavaModel"
    assert not info["missing_keys"] and not info["unexpected_keys"]
    images, texts, inputs = of_pictures(made.path, ours.model.image_size)
    ids, mask = (torch.from_numpy(x) for x in ours.model.tokenizer.encode_batch(texts))
    assert torch.equal(inputs["input_ids"], ids)
    with torch.no_grad():
        out = model.eval()(**inputs)
        image = model.image_projection(out.image_embeddings[:, 0])
        text = model.text_projection(out.text_embeddings[:, 0])
        p = ours.model.encode(batch_of(pixels=inputs["pixel_values"], text=ids, text_mask=mask))
        fused = p["text.fused"].pooled
    for found, wanted in ((image, ours.embed_image(images)), (text, ours.embed_text(texts))):
        found = torch.nn.functional.normalize(found, dim=-1)
        torch.testing.assert_close(found, torch.from_numpy(wanted), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.multimodal_embeddings[:, 0], fused, atol=1e-5, rtol=1e-5)
    assert (fused[0] - fused[1]).abs().max() > 1e-3
    torch.testing.assert_close(model.logit_scale.exp(), ours.objectives["info_nce"].scale.detach(), atol=1e-5, rtol=1e-5)


def test_an_export_with_its_heads_computes_what_the_run_learns_by(trained: Any, tmp_path: Any) -> None:
    from transformers import FlavaForPreTraining

    from diptych.api import load
    from diptych.inference.export import export
    from diptych.inference.run import TrainedModel

    ours, made = TrainedModel.load(trained, "cpu"), export(trained, out=tmp_path / "export", architecture="FlavaForPreTraining")
    theirs, info = FlavaForPreTraining.from_pretrained(made.path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and theirs.image_codebook is None
    given_pictures, texts, inputs = of_pictures(made.path, ours.model.image_size)
    model, objectives = ours.model, ours.objectives
    ids, mask, pixels = inputs["input_ids"], inputs["attention_mask"].bool(), inputs["pixel_values"]
    words = torch.zeros_like(mask)
    words[:, 2:4] = True
    n = model.part("vision").tokens
    torch.manual_seed(0)
    given = {
        "pixels": pixels, "ids": ids, "mask": mask, "words": words, "masked": ids.masked_fill(words, model.tokenizer.mask),
        "patches": torch.rand(2, n).argsort(1) < n // 3, "codes": model.part("quantizer").codes(pixels),
    }  # fmt: skip
    out = reference(theirs.eval(), given)
    close = {"atol": 1e-5, "rtol": 1e-5}
    p = model.encode(batch_of(pixels, ids, mask))
    view = masked(p, given["masked"], given["patches"])
    both = objectives["masked_both"]
    with torch.no_grad():
        codes = both.image_head(view["image.fused"].tokens[:, 1:][given["patches"]])
        said = both.text_head(view["text.fused"].tokens[words])
        torch.testing.assert_close(codes, out.mmm_image_logits, **close)
        torch.testing.assert_close(said, out.mmm_text_logits, **close)
        odds = objectives["matching"].logits(view)
        torch.testing.assert_close(odds, out.itm_logits[:, 1] - out.itm_logits[:, 0], **close)
        assert abs(float(odds[0] - odds[1])) > 1e-4
        surprise = torch.nn.functional.cross_entropy
        assert surprise(codes, given["codes"][given["patches"]]).item() == pytest.approx(out.loss_info.mmm_image.item(), abs=1e-5)
        assert surprise(said, ids[words]).item() == pytest.approx(out.loss_info.mmm_text.item(), abs=1e-5)
        assert objectives["info_nce"](p).item() == pytest.approx(out.loss_info.global_contrastive.item(), abs=1e-5)
        alone = reference(
            theirs, given, input_ids=None, input_ids_masked=None, attention_mask=None, mlm_labels=None, itm_labels=None
        )
        x = image_tokens(model, pixels, given["patches"])[:, 1:][given["patches"]]
        torch.testing.assert_close(objectives["masked_codes"].head(normed(model.part("vision"), x)), alone.mim_logits, **close)
        alone = reference(theirs, given, pixel_values=None, bool_masked_pos=None, mim_labels=None, itm_labels=None)
        x = model.encode(batch_of(text=given["masked"], text_mask=mask))["text.tokens"].tokens[words]
        torch.testing.assert_close(objectives["masked_text"].head(normed(model.part("text"), x)), alone.mlm_logits, **close)
    again = load(f"hf:{made.path}", device="cpu")  # its towers alone, as diptych evaluate hf:PATH takes them
    np.testing.assert_allclose(again.score(given_pictures, texts), ours.score(given_pictures, texts), atol=1e-5)
    card = (made.path / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code and "FlavaForPreTraining" in code[1]


def test_a_run_without_its_heads_is_refused_as_the_class_with_them() -> None:
    from diptych.interop import family_for

    little = Little("flava", "stages.1.objectives.matching.pooler=gelu", stage="main")
    with pytest.raises(DiptychError, match="no matching head has a tanh inside"):
        family_for("transformers", little.recipe, little.model, little.objectives, "FlavaForPreTraining")
    assert family_for("transformers", little.recipe, little.model, little.objectives).architecture == "FlavaModel"


def test_permuting_the_pairs_permutes_what_is_fused(ours: Any, given: dict[str, torch.Tensor]) -> None:
    model, objectives = ours
    order = torch.tensor([2, 0, 1])
    pixels, ids, mask = given["pixels"], given["ids"], given["mask"]
    straight = model.encode(batch_of(pixels, ids, mask))
    turned = model.encode(batch_of(pixels[order], ids[order], mask[order]))
    logits = [objectives["matching"].logits(p) for p in (straight, turned)]
    torch.testing.assert_close(logits[1], logits[0][order], atol=1e-5, rtol=1e-5)
    scores = [p["image.embedding"] @ p["text.embedding"].T for p in (straight, turned)]
    torch.testing.assert_close(scores[1], scores[0][order][:, order], atol=1e-5, rtol=1e-5)


def test_gradients_through_the_joint_encoder(ours: Any, given: dict[str, torch.Tensor]) -> None:
    """Against finite differences in float64, from both modalities through fusion and heads."""
    from copy import deepcopy

    from diptych.core.batch import Tokens

    model, objectives = deepcopy(ours[0]).double(), deepcopy(ours[1]).double()
    joint, both = model.part("fusion"), objectives["masked_both"]
    mask = torch.tensor([[True, True, False]])
    seen, said = (torch.randn(1, n, 32, dtype=torch.float64, requires_grad=True) for n in (2, 3))

    def loss(seen: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
        text, image = joint.both(Tokens(said, said[:, 0], mask), Tokens(seen, seen[:, 0]))
        ce = torch.nn.functional.cross_entropy
        codes, words = both.image_head(image.tokens[0, 1:]), both.text_head(text.tokens[0, :2])
        return ce(codes, torch.tensor([3])) + ce(words, torch.tensor([5, 9]))

    assert torch.autograd.gradcheck(loss, (seen, said))
    loss(seen, said).backward()
    assert said.grad is not None and not said.grad[0, 2].any()  # padding teaches nothing


def test_geometry_that_does_not_fit_is_refused() -> None:
    with pytest.raises(DiptychError, match="mask_token: true"):
        Little("flava", "parts.vision.mask_token=false")
    with pytest.raises(DiptychError, match="give both the same patch"):
        Little("flava", "parts.quantizer.patch=16")
    with pytest.raises(DiptychError, match="pooled by mean or class token only"):
        from diptych.models.vision.towers import ViT

        ViT(Build(SIZES["tiny"], 32, None, where="parts.vision"), pool="map", bare=True)


def test_tokens_and_operations_of_what_has_no_partner_are_counted() -> None:
    little = Little("flava", stage="main")
    plain = little.step(None)
    source, context = little.loader.source, Context(little.tokenizer, 48)
    for name, kind in UNPAIRED.items():
        little.loader.add_unpaired(name, Loader(source, build_fields([kind], context), 12))
    both = little.step(None)
    assert both.tokens == 2 * plain.tokens and both.samples == plain.samples
    # operations are remembered by shape: a longer text without an image must not be taken for a shorter one
    batch = both.batch
    text = batch["unpaired_text"]
    shorter = replace(text, ids=text.ids[:, :-1], mask=text.mask[:, :-1])
    assert batch.shapes() != batch.with_(unpaired_text=shorter).shapes()
