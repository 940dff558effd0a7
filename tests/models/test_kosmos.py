"""Kosmos-2: parity with transformers (text side, latent tokens, boxes of cells), writing step by step, boxes as text."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from diptych.config.recipe import load_recipe
from diptych.core.errors import DiptychError
from diptych.core.sample import Captions, Region, Sample
from diptych.data.fields import Context, Draw
from diptych.data.fields.grounded import GroundedField
from diptych.data.regions.locations import (
    LocationTokenizer,
    LocationTokenizer16,
    box_of_cells,
    cells_of,
    grounded,
    location,
    parse_boxes,
    written,
)
from diptych.models.decoders.kosmos import box_of
from diptych.models.vlm import build_model
from engine_fixture import Little
from regions_fixture import PHRASES, batch_for

DECODER = "parts.decoder={kind: kosmos, latent: 5, width: 24, heads: 2, depth: 2, hidden: 40, activation: gelu}"
VISION = "parts.vision={kind: vit, width: 32, heads: 2, depth: 1}"


def model_of(*overrides: str) -> Any:
    torch.manual_seed(0)
    recipe = load_recipe("kosmos-2", [DECODER, VISION, "precision=fp32", *overrides])
    return build_model(recipe, LocationTokenizer16.train(PHRASES, 400, 24), 48).eval()


@pytest.fixture(scope="module")
def model() -> Any:
    return model_of()


def test_parity_with_transformers(model) -> None:
    from transformers import Kosmos2Config
    from transformers.models.kosmos2.modeling_kosmos2 import Kosmos2ImageToTextProjection, Kosmos2TextForCausalLM

    pad = 1  # theirs: positions begin after the padding's id
    text = {
        "vocab_size": len(model.tokenizer), "embed_dim": 24, "layers": 2, "ffn_dim": 40, "attention_heads": 2, "max_position_embeddings": 64,
        "pad_token_id": pad, "bos_token_id": 0, "eos_token_id": 2, "dropout": 0.0, "attention_dropout": 0.0,
    }  # fmt: skip
    config = Kosmos2Config(text_config=text, vision_config={"hidden_size": 32}, latent_query_num=5)
    torch.manual_seed(1)
    theirs, latent = Kosmos2TextForCausalLM(config.text_config).eval(), Kosmos2ImageToTextProjection(config).eval()
    with torch.no_grad():
        for module in (theirs, latent):
            for name, p in module.named_parameters():
                p.copy_(torch.randn_like(p) * (0.2 if p.ndim > 1 else 0.1) + ("norm" in name and name.endswith("weight")))
    ours = model.part("decoder")

    def attention(mine: Any, other: Any) -> None:
        mine.q.load_state_dict(other.q_proj.state_dict())
        mine.out.load_state_dict(other.out_proj.state_dict())
        mine.kv.weight.copy_(torch.cat([other.k_proj.weight, other.v_proj.weight]))
        mine.kv.bias.copy_(torch.cat([other.k_proj.bias, other.v_proj.bias]))

    with torch.no_grad():
        ours.embedding.weight.copy_(theirs.model.embed_tokens.weight)
        ours.image.layer.load_state_dict(latent.dense.state_dict())
        ours.image.queries.copy_(latent.latent_query)
        attention(ours.image.attention, latent.x_attn)
        for a, b in zip(ours.transformer.blocks, theirs.model.layers, strict=True):
            attention(a.attention, b.self_attn)
            a.attention.inner.load_state_dict(b.self_attn.inner_attn_ln.state_dict())
            a.norm1.load_state_dict(b.self_attn_layer_norm.state_dict())
            a.norm2.load_state_dict(b.final_layer_norm.state_dict())
            a.mlp[0].load_state_dict(b.ffn.fc1.state_dict())
            a.mlp[1][1].load_state_dict(b.ffn.ffn_layernorm.state_dict())
            a.mlp[2].load_state_dict(b.ffn.fc2.state_dict())
        ours.transformer.norm.load_state_dict(theirs.model.layer_norm.state_dict())
        batch = batch_for(model, text=True)
        p = model.encode(batch)
        words, n = p["text"], 5
        features, _ = latent(torch.nn.functional.normalize(p["image.tokens"].tokens, dim=-1))
        torch.testing.assert_close(ours.latents(p["image.tokens"]), features, atol=1e-5, rtol=1e-5)
        T = int(words.mask.sum(1).min())  # without padding, which has other ids there
        ids = torch.cat([words.ids[:, :1], torch.full((2, n), 7), words.ids[:, 1:T]], 1)
        place = torch.zeros(ids.shape, dtype=torch.bool)
        place[:, 1 : 1 + n] = True
        assert not (ids == pad)[:, 1:].any()
        positions = torch.arange(2, 2 + ids.shape[1]).expand(2, -1).contiguous()
        out = theirs(input_ids=ids, image_embeds=features, image_embeds_position_mask=place, position_ids=positions).logits
        logits = ours.read(words.ids[:, :T], words.mask[:, :T], p["image.tokens"])
    torch.testing.assert_close(logits, out[:, n:], atol=1e-5, rtol=1e-5)


def test_boxes_of_cells_as_the_published_processor_reads_them() -> None:
    from transformers.models.kosmos2.processing_kosmos2 import coordinate_to_patch_index, patch_index_to_coordinate

    rng = np.random.default_rng(0)
    for _ in range(200):
        first, size = rng.uniform(0, 0.8, 2), rng.uniform(0.001, 0.5, 2)
        box = (*first, *np.minimum(first + size, 1.0))
        cells = cells_of(box, 32)
        assert cells == tuple(coordinate_to_patch_index(box, 32))
        assert box_of_cells(*cells, 32) == pytest.approx(patch_index_to_coordinate(*cells, 32))
    pairs = [(0, 0), (3, 19), (3, 6), (17, 250), (255, 255)]
    ours = box_of(*(torch.tensor(x) for x in zip(*pairs, strict=True)), 16)
    np.testing.assert_allclose(ours.numpy(), [box_of_cells(*pair, 16) for pair in pairs], atol=1e-6)


def test_what_the_published_processor_writes_is_parsed() -> None:
    from transformers.models.kosmos2.processing_kosmos2 import clean_text_and_extract_entities_with_bboxes

    text = (
        "<grounding> An image of<phrase> a snowman</phrase><object><patch_index_0044><patch_index_0863></object> warming by"
        "<phrase> fires</phrase><object><patch_index_0005><patch_index_0911></delimiter_of_multi_objects/><patch_index_0034>"
        "<patch_index_0200></object>."
    )
    _, entities = clean_text_and_extract_entities_with_bboxes(text)
    expected = [(name.strip(), box) for name, _, boxes in entities for box in boxes]
    for ours, (name, box) in zip(parse_boxes(text), expected, strict=True):
        assert ours.phrase == name and ours.box == pytest.approx(box)


@pytest.mark.parametrize(
    ("text", "convention", "boxes"),
    [
        ("it is at {<10><20><60><90>}.", "100", [(0.1, 0.2, 0.6, 0.9)]),
        ("[100, 200, 600, 900] and (10,20),(60,90)", "1000", [(0.1, 0.2, 0.6, 0.9), (0.01, 0.02, 0.06, 0.09)]),
        ("[0.1, 0.25, 0.5, 1.0]", "1", [(0.1, 0.25, 0.5, 1.0)]),
        ("[60, 20, 10, 90] {<10><20><60><190>} [1, 2, 3]", "100", []),  # right before left, beyond the side, three numbers
        ("999: [0, 0, 999, 999]", "999", [(0, 0, 1, 1)]),
        ("<object><patch_index_9999><patch_index_0001></object>", "kosmos-2/16", []),
        ("no box", "100", []),
    ],
)
def test_boxes_as_text(text: str, convention: str, boxes: list[tuple[float, ...]]) -> None:
    assert [m.box for m in parse_boxes(text, convention)] == [pytest.approx(box) for box in boxes]


def test_an_unknown_convention_is_refused() -> None:
    with pytest.raises(DiptychError, match="no convention '10'"):
        parse_boxes("[1, 2, 3, 4]", "10")


def test_captions_with_locations() -> None:
    regions = [("a red fox", (0.0, 0.0, 0.5, 0.5)), ("two keys", (0.5, 0.5, 1.0, 1.0)), ("a small heart", (0.2, 0.2, 0.3, 0.3))]
    text = grounded("The red fox left of two keys above a heart and a cat", regions, 16)
    assert text == (
        written("The red fox", [(0.0, 0.0, 0.5, 0.5)], 16) + " left of " + written("two keys", [(0.5, 0.5, 1, 1)], 16)
        + " above " + written("a heart", [(0.2, 0.2, 0.3, 0.3)], 16) + " and a cat"
    )  # fmt: skip
    assert written("x", [(0, 0, 1, 1)], 16) == f"<phrase>x</phrase><object>{location(0)}{location(255)}</object>"


def test_the_tokenizer_reads_and_writes_locations(tmp_path) -> None:
    tokenizer = LocationTokenizer.train(PHRASES, 400, 24)
    again = LocationTokenizer(tokenizer.to_json(), 24)
    text = written("a red fox", [(0.1, 0.2, 0.3, 0.4)], 32)
    ids, mask = again.encode_batch([text])
    assert int(mask.sum()) == 2 + 3 + 4 + 2, "two marks each, two locations, three words, [BOS] and [EOS]"
    assert again.decode(ids[0]) == "a red fox"
    (found,) = parse_boxes(again.decode_grounded(ids[0]))
    assert found.phrase == "a red fox" and found.box == pytest.approx(box_of_cells(*cells_of((0.1, 0.2, 0.3, 0.4), 32), 32))
    assert len(again) == len(tokenizer) and again.mark("<object>") == tokenizer.mark("<object>")


def test_step_by_step_is_the_same(model) -> None:
    batch = batch_for(model, text=True)
    decoder, text = model.part("decoder"), batch["text"]
    with torch.no_grad():
        image = model.encode(batch)["image.tokens"]
        whole = decoder.read(text.ids, text.mask, image)
        logits, state = decoder.start(image)
        for t in range(1, int(text.mask.sum(1).min())):
            torch.testing.assert_close(logits, whole[:, t - 1], atol=1e-5, rtol=1e-4)
            logits, state = decoder.step(text.ids[:, t], state)


def test_the_box_of_a_text_is_the_likeliest_one_after_the_question(model) -> None:
    batch = batch_for(model, text=True)
    part, decoder, tokenizer = model.part("grounding"), model.part("decoder"), model.tokenizer
    with torch.no_grad():
        p = model.encode(batch)
        ours = p["text.box"]
        for b, phrase in enumerate(PHRASES[:2]):
            ids, mask = (torch.from_numpy(x) for x in tokenizer.encode_batch([f"<grounding><phrase>{phrase}</phrase><object>"]))
            n = int(mask.sum()) - 1  # without [EOS]
            image = p["image.tokens"][torch.tensor([b])]
            first = int(decoder.read(ids[:, :n], mask[:, :n], image)[0, -1, part.first : part.first + 256].argmax())
            ids = torch.cat([ids[:, :n], torch.tensor([[part.first + first]])], 1)
            logits = decoder.read(ids, torch.ones_like(ids, dtype=torch.bool), image)[0, -1, part.first : part.first + 256]
            allowed = [c for c in range(256) if c // 16 >= first // 16 and c % 16 >= first % 16]
            last = max(allowed, key=lambda c: float(logits[c]))
            assert ours[b].tolist() == pytest.approx(box_of_cells(first, last, 16))


def test_texts_of_a_sample_with_regions() -> None:
    tokenizer = LocationTokenizer16.train(PHRASES, 400, 48)
    sample = Sample(
        "a",
        image=np.zeros((32, 32, 3), np.uint8),
        text=Captions(["a red fox and a key"]),
        regions=[Region((0, 0, 16, 16), "a red fox")],
    )
    for shares, start in (({"phrases": 1.0, "plain": 0.0}, "<grounding><phrase>"), ({"phrases": 0.0, "plain": 1.0}, "a red")):
        field = GroundedField("text", tokenizer, 32, **shares)
        texts = field.collate([Draw(0, i, sample, {"text": field.fit(sample, random.Random)}) for i in range(3)])  # type: ignore[arg-type]
        assert all(s.startswith(start) for s in texts.strings)
    field = GroundedField("text", tokenizer, 32, phrases=0.0, plain=0.0)
    (text,) = field.collate([Draw(0, 0, sample, {"text": field.fit(sample, random.Random)})]).strings  # type: ignore[arg-type]
    assert text == "<grounding>" + written("a red fox", [(0, 0, 0.5, 0.5)], 16) + " and a key"
    with pytest.raises(DiptychError, match="LocationTokenizer"):
        GroundedField.build("text", Context(tokenizer=object(), image_size=32))
    with pytest.raises(DiptychError, match="whose sum 1.5"):
        GroundedField("text", tokenizer, 32, phrases=1.0, plain=0.5)


def test_it_learns() -> None:
    little = Little("kosmos-2", batch_size=8)
    optimizer = torch.optim.AdamW(little.parameters().values(), lr=2e-3)
    losses = []
    for _ in range(12):
        losses.append(float(little.step(None).losses["next_token"]))
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    whole, pieces = little.gradients(None), little.gradients(4)
    assert all((pieces[n] - g).norm() <= 1e-3 * g.norm() + 1e-6 for n, g in whole.items())
