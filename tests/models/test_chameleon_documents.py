"""Chameleon's documents: sequences of several texts and images, their loss with z-loss, both orders of norms, and what follows a
document."""

from __future__ import annotations

import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor

from diptych.config.recipe import load_recipe
from diptych.core.batch import Batch, Documents, Images, Texts
from diptych.core.errors import DiptychError
from diptych.core.sample import Captions, Document, Sample
from diptych.data.fields import Context, build_fields
from diptych.data.loader import Loader
from diptych.data.source import BrokenItem
from diptych.data.sources import open_source
from diptych.data.text import Tokenizer
from diptych.inference.compose import Composer
from diptych.inference.run import TrainedModel
from diptych.models.decoders.interleaved import CODE, NOTHING, WORD
from diptych.models.layers.rotary import RotaryTransformer
from diptych.models.vlm import build_model
from diptych.objectives import build_objectives
from engine_fixture import Little

TEXTS = ["a red fox left of a blue heart", "two green keys", "now it is blue", "a key"]
OBJECTIVE = "stages.1.objectives.interleaved"
SMALL = [
    *("parts.quantizer.patch=16", "parts.quantizer.width=32", "parts.quantizer.vocabulary=40"),
    *("parts.decoder.width=32", "parts.decoder.depth=2", "parts.decoder.heads=4", "precision=fp32"),
]


def make(*overrides):
    torch.manual_seed(0)
    recipe = load_recipe("chameleon", [*SMALL, *overrides])
    model = build_model(recipe, Tokenizer.train(TEXTS, 400, 24), 48).eval()
    torch.nn.init.normal_(model.part("decoder").head.weight, std=0.5)  # opinions, so that nothing is nearly uniform
    return recipe, model, build_objectives(recipe, model).eval()


def pixels(n: int) -> Tensor:
    return torch.rand(n, 3, 48, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1


def documents(model, layouts: list[str], start: int = 0) -> Batch:
    """A batch of documents by their layouts: "ti" is a text, then an image. Texts and images are taken in turn."""
    kinds = [kind for layout in layouts for kind in layout]
    owners = torch.tensor([i for i, layout in enumerate(layouts) for _ in layout])
    kind = torch.tensor([int(k == "i") for k in kinds])
    ids, mask = (
        torch.from_numpy(x) for x in model.tokenizer.encode_batch([TEXTS[i % 4] for i in range(kinds.count("t"))] or ["a"])
    )
    texts = Texts(ids, mask, owner=owners[kind == 0]) if "t" in kinds else None
    images = Images(pixels(kinds.count("i")), owners[kind == 1]) if "i" in kinds else None
    return Batch({"document": Documents(kind, texts, images, owners)}, len(layouts), start)


def written(model, batch: Batch, order: dict[int, str] | None = None) -> list[list[int]]:
    """The sequences as they should be, token by token. order: other layouts of some documents."""
    d, found, t, i = model.part("decoder"), batch["document"], 0, 0
    codes = model.encode(batch)["document.images.codes"].tolist() if found.images is not None else []
    parts: list[list[tuple[str, list[int]]]] = [[] for _ in range(batch.size)]
    for kind, owner in zip(found.kind.tolist(), found.owner.tolist(), strict=True):
        if kind:
            parts[owner].append(("i", [d.begin, *(c + d.first_code for c in codes[i]), d.end]))
            i += 1
        else:
            parts[owner].append(("t", found.texts.ids[t][found.texts.mask[t]].tolist()[1:-1]))
            t += 1
    for row, layout in (order or {}).items():
        parts[row] = [part for kind in layout for part in parts[row] if part[0] == kind]
    return [[d.bos, *(token for _, tokens in own for token in tokens), d.eos] for own in parts]


LAYOUTS = ["titit", "it", "iit", "t", "ti", "i"]


# --- sequences and losses ---


def test_sequences_of_documents_are_those_written_out_by_hand() -> None:
    _, model, objectives = make(f"{OBJECTIVE}.drop=0", f"{OBJECTIVE}.image_first=0.5")
    d, batch = model.part("decoder"), documents(model, LAYOUTS)
    sequence, kind = objectives["interleaved"].arranged(model.encode(batch))
    # Every other document is read image first, if it is one image and one text.
    for i, whole in enumerate(written(model, batch, {1: "it", 4: "ti"})):
        assert sequence[i].tolist() == whole + [d.pad] * (sequence.shape[1] - len(whole))
        kinds = [CODE if token >= d.first_code else WORD for token in whole]
        assert kind[i].tolist() == kinds + [NOTHING] * (sequence.shape[1] - len(whole))
    turned, _ = objectives["interleaved"].arranged(model.encode(documents(model, ["t", *LAYOUTS])))
    expected = written(model, documents(model, ["t", *LAYOUTS]), {2: "ti", 5: "it"})
    assert [row.tolist()[: len(whole)] for row, whole in zip(turned, expected, strict=True)] == expected, "the other half"


def test_texts_are_dropped_and_long_documents_cut() -> None:
    _, model, objectives = make(f"{OBJECTIVE}.drop=1", f"{OBJECTIVE}.image_first=0", f"{OBJECTIVE}.length=16")
    batch = documents(model, ["titi", "t", "it"])
    sequence, _ = objectives["interleaved"].arranged(model.encode(batch))
    assert sequence.shape[1] == 16
    expected = written(model, batch, {0: "i", 2: "i"})
    assert [row.tolist() for row in sequence] == [
        whole[:16] + [model.part("decoder").pad] * (16 - len(whole)) for whole in expected
    ]


def test_it_keeps_nothing_of_a_pass_and_can_be_copied_for_an_average() -> None:
    """Also if another objective of the stage has encoded the same pass with gradients."""
    _, model, objectives = make()
    p = model.encode(documents(model, LAYOUTS))
    assert p["document.images.quantized"].pixels.requires_grad
    objectives["interleaved"](p).backward()
    copy.deepcopy(objectives["interleaved"])
    passed = weakref.ref(p["document.images.quantized"].pixels)
    del p
    gc.collect()
    assert passed() is None


def log_z(row: np.ndarray) -> float:
    return float(np.log(np.exp(row - row.max()).sum()) + row.max())


def test_the_loss_with_its_penalty_is_the_mean_of_the_reference() -> None:
    options = (f"{OBJECTIVE}.z_loss=0.01", f"{OBJECTIVE}.image_weight=0.5", f"{OBJECTIVE}.drop=0")
    _, model, objectives = make(*options)
    d, batch = model.part("decoder"), documents(model, LAYOUTS)
    p, objective = model.encode(batch), objectives["interleaved"]
    total = weight = 0.0
    for whole in written(model, batch, {1: "it", 4: "ti"}):
        logits = d(torch.tensor([whole]))[0].detach().double().numpy()
        for t, target in enumerate(whole[1:]):
            w = 0.5 if target >= d.first_code else 1.0
            z = log_z(logits[t])
            total += w * (z - logits[t, target] + 0.01 * z**2)
            weight += w
    assert objective.terms(p) == pytest.approx(weight)
    assert objective(p).item() == pytest.approx(total / weight, rel=1e-5)
    assert {"word", "code", "log_z"} <= set(objective.metrics())


def test_the_penalty_has_the_gradient_of_finite_differences() -> None:
    _, model, objectives = make(f"{OBJECTIVE}.z_loss=0.01")
    d, objective = model.part("decoder").double(), objectives["interleaved"]
    p = model.encode(documents(model, LAYOUTS))
    sequence, kind = objective.arranged(p)
    where = kind[:, 1:] != NOTHING

    def value() -> float:
        logits = d.logits_at(sequence[:, :-1], where)
        z = logits.logsumexp(-1)
        picked = logits.gather(1, sequence[:, 1:][where][:, None])[:, 0]
        return float((z - picked + 0.01 * z**2).mean())

    objective(p).backward()
    for parameter, index in ((d.head.weight, (d.first_code + 3, 2)), (d.transformer.blocks[0].mlp.gate.weight, (5, 7))):
        with torch.no_grad():
            values = []
            for step in (1e-6, -2e-6):
                parameter[index] += step
                values.append(value())
            parameter[index] += 1e-6
        assert parameter.grad[index].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-3, abs=1e-7)


def test_the_penalty_pulls_log_z_towards_zero() -> None:
    _, model, objectives = make(f"{OBJECTIVE}.z_loss=0.01")
    d, objective = model.part("decoder"), objectives["interleaved"]
    p = model.encode(documents(model, LAYOUTS))
    shift = torch.nn.Parameter(torch.tensor(5.0))  # added to every logit: cross-entropy alone cannot feel it
    plain = d.logits_at
    d.logits_at = lambda ids, where: plain(ids, where) + shift
    objective(p).backward()
    assert shift.grad.item() > 0
    shift.grad, objective.z_loss = None, 0.0
    objective(p).backward()
    assert abs(shift.grad.item()) < 1e-5


def test_captioned_images_have_the_loss_of_pairs() -> None:
    """The same samples as documents and as pairs."""
    source = open_source("scenes:small").split("train")
    losses = {}
    for kind in ("interleaved", "interleaved_documents"):
        _, model, objectives = make(f"{OBJECTIVE}.kind={kind}", f"{OBJECTIVE}.drop=0.5", f"{OBJECTIVE}.z_loss=1e-3")
        fields = ("document",) if kind == "interleaved_documents" else ("image", "text")
        batch = Loader(source, build_fields(fields, Context(model.tokenizer, 48, source=source)), 12, 3).batch(2)
        p = model.encode(batch)
        losses[kind] = objectives["interleaved"].terms(p), objectives["interleaved"](p).item()
    assert losses["interleaved"] == pytest.approx(losses["interleaved_documents"], rel=1e-6)


# --- data ---


def test_a_sample_without_a_document_is_its_image_and_a_caption_that_is_drawn_anew() -> None:
    model = make()[1]
    field = build_fields(["document"], Context(model.tokenizer, 48))["document"]
    picture = np.zeros((48, 48, 3), dtype=np.uint8)

    class Two:
        address, problems = "two", []

        def __len__(self) -> int:
            return 2

        def __getitem__(self, i: int) -> Sample:
            if i:
                return Sample("1", document=Document(["a key", picture, "two green keys"]))
            return Sample("0", image=picture, text=Captions(["a red fox", "a blue heart"]))

    loader = Loader(Two(), {"document": field}, 2, 0)
    seen = set()
    for step in range(12):
        found = loader.batch(step)["document"]
        assert len(found.kind) == 5 and len(found.images) == 2
        seen |= set(found.texts.strings)
    assert seen == {"a red fox", "a blue heart", "a key", "two green keys"}
    for broken in (Sample("2", image=picture), Sample("3", text=Captions(["a key"]))):
        with pytest.raises(BrokenItem, match="no document, and no image with a caption"):
            field.fit(broken, lambda: None)


def test_micro_batches_of_documents_and_captioned_images_give_the_gradient_of_the_whole_batch() -> None:
    for stage in ("tokenizer", "main"):
        little = Little("chameleon", *SMALL, stage=stage)
        source = open_source("mix:0.5*scenes:small+0.5*scenes:albums?size=48").split("train")
        context = Context(little.tokenizer, 48, source=source)
        little.loader = Loader(source, build_fields(["document"], context), 12, 0)
        counts = torch.bincount(little.loader.batch(0)["document"].owner).tolist()
        assert min(counts) == 2 < max(counts), "captioned images and documents"
        whole = little.gradients(None)
        for micro in (3, 6):
            pieces = little.gradients(micro)
            for n, g in whole.items():
                assert (pieces[n] - g).norm() <= 2e-5 * g.norm() + 1e-8, (stage, n)


def test_documents_without_any_image_teach_words_and_nothing_to_the_quantizer() -> None:
    _, model, objectives = make()
    p = model.encode(documents(model, ["t", "tt"]))
    assert objectives["reconstruction"].count(p) == 0
    loss = objectives["reconstruction"](p)
    assert loss.item() == 0 and loss.requires_grad
    assert objectives["interleaved"](p).item() > 0 and set(objectives["interleaved"].metrics()) == {"word", "log_z"}


# --- norms ---


def rms(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight


@pytest.mark.parametrize("norm", ["before", "after"])
@pytest.mark.parametrize("qk_norm", [True, False])
def test_blocks_equal_the_reference(norm, qk_norm) -> None:
    torch.manual_seed(0)
    t = RotaryTransformer(16, 1, 2, 24, norm=norm, qk_norm=qk_norm).double()
    with torch.no_grad():
        for parameter in t.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(1, 5, 16, dtype=torch.float64)
    w = {name: parameter.detach().numpy() for name, parameter in t.blocks[0].named_parameters()}
    frequency = 10_000.0 ** (-np.arange(0, 8, 2) / 8)

    def turned(y: np.ndarray) -> np.ndarray:
        z = y[..., :4] + 1j * y[..., 4:]
        z = z * np.exp(1j * np.arange(5)[:, None, None] * frequency)
        return np.concatenate([z.real, z.imag], -1)

    def attention(y: np.ndarray) -> np.ndarray:
        q, k, v = ((y @ w[f"attention.{name}.weight"].T).reshape(5, 2, 8) for name in "qkv")
        if qk_norm:
            q, k = (
                (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-5) * w[f"attention.{n}_norm.weight"]
                + w[f"attention.{n}_norm.bias"]
                for n, z in (("q", q), ("k", k))
            )
        q, k = turned(q), turned(k)
        out = np.zeros((5, 2, 8))
        for i in range(5):
            for h in range(2):
                a = np.exp(q[i, h] @ k[: i + 1, h].T / np.sqrt(8))
                out[i, h] = a / a.sum() @ v[: i + 1, h]
        return out.reshape(5, 16) @ w["attention.out.weight"].T

    def mlp(y: np.ndarray) -> np.ndarray:
        gate = y @ w["mlp.gate.weight"].T
        return (gate / (1 + np.exp(-gate)) * (y @ w["mlp.up.weight"].T)) @ w["mlp.down.weight"].T

    y = x[0].numpy()
    if norm == "after":
        y = y + rms(attention(y), w["norm1.weight"])
        y = y + rms(mlp(y), w["norm2.weight"])
    else:
        y = y + attention(rms(y, w["norm1.weight"]))
        y = y + mlp(rms(y, w["norm2.weight"]))
    expected = rms(y, t.norm.weight.detach().numpy())
    np.testing.assert_allclose(t(x)[0][0].detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_the_options_of_the_decoder_reach_its_blocks() -> None:
    d = make("parts.decoder.norm=after", "parts.decoder.qk_norm=false")[1].part("decoder")
    assert all(block.after and not list(block.attention.q_norm.parameters()) for block in d.transformer.blocks)
    assert not any(block.after for block in make()[1].part("decoder").transformer.blocks)


# --- what follows ---


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (48, 48, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def trained() -> TrainedModel:
    recipe, model, objectives = make()
    return TrainedModel("m", recipe, model, objectives, torch.device("cpu"))


def test_the_likeliest_continuation_is_that_of_reading_everything_afresh(trained) -> None:
    """Word by word and code by code, without a cache, the whole sequence each time."""
    model = trained.model
    d, known = model.part("decoder"), ["two green keys", picture(0), "a key"]
    composer_codes = trained._images([picture(0)])["image.codes"][0].tolist()
    first, second = (model.tokenizer.encode_batch([t]) for t in ("two green keys", "a key"))
    ids = [
        *first[0][0][first[1][0]].tolist()[:-1],
        *(d.begin, *(c + d.first_code for c in composer_codes), d.end),
        *second[0][0][second[1][0]].tolist()[1:-1],
    ]

    def likeliest(ids: list[int], low: int, high: int) -> int:
        with torch.no_grad():
            return low + int(d(torch.tensor([ids]))[0, -1, low:high].argmax())

    said = list(ids)
    for _ in range(6):
        token = likeliest(said, 0, d.words + 1)
        if token in (d.eos, d.begin):
            break
        said.append(token)
    (found,) = trained.compose([known], following="text", temperature=0, max_tokens=6)
    assert found == [model.tokenizer.decode(said[len(ids) :])]
    drawn = [*ids, d.begin]
    for _ in range(d.tokens):
        drawn.append(likeliest(drawn, d.first_code, d.first_code + d.codes))
    (shown,) = trained.compose([known], following="image", temperature=0)[0]
    codes = torch.tensor([drawn[len(ids) + 1 :]]) - d.first_code
    assert np.array_equal(shown, trained._pictures(codes)[0])


def test_the_model_chooses_between_words_images_and_the_end(trained, monkeypatch) -> None:
    d = trained.model.part("decoder")
    script = iter([5, 6, d.begin, d.begin, 7, d.eos])  # words, an image, another at once, a word, the end

    def told(*_: object) -> tuple[Tensor, Indexed]:
        logits = torch.full((1, d.words + 1), -10.0)
        logits[0, next(script)] = 10.0
        return logits, Indexed()

    class Indexed:
        def __getitem__(self, rows: Tensor) -> Indexed:
            return self

    monkeypatch.setattr(d, "start_text", told)
    monkeypatch.setattr(d, "step_text", told)
    (found,) = trained.compose([["a key"]], most=9, temperature=0)
    assert ["text" if isinstance(part, str) else "image" for part in found] == ["text", "image", "image", "text"]
    assert found[0] == trained.model.tokenizer.decode([5, 6]) and found[3] == trained.model.tokenizer.decode([7])
    assert found[1].shape == (48, 48, 3) and found[1].dtype == np.uint8


def test_a_text_that_would_be_cut_is_refused(trained) -> None:
    most = trained.model.tokenizer.max_length - 2
    (ids,) = trained.model.tokenizer.caption_pieces(["key " * (most + 1)])
    with pytest.raises(DiptychError, match=f"a text of {len(ids)} tokens; the model has learned from texts of {most} at most"):
        trained.compose([["a key", "key " * (most + 1)]])


def test_continuations_are_fixed_by_the_seed_and_limited(trained) -> None:
    assert "compose" in trained.capabilities
    known = [["a key", picture(1)], []]
    first, again, other = (trained.compose(known, seed=seed, max_tokens=4, most=3) for seed in (1, 1, 2))
    assert all(len(row) <= 3 for row in first)

    def flat(rows: list) -> list:
        return [part if isinstance(part, str) else part.tobytes() for row in rows for part in row]

    assert flat(first) == flat(again) != flat(other)
    with pytest.raises(DiptychError, match="following is 'sound'; expected 'text', 'image'"):
        trained.compose([["a key"]], following="sound")
    recipe, model, objectives = make(f"{OBJECTIVE}.kind=interleaved")
    with pytest.raises(DiptychError, match="cannot compose; it can: "):
        TrainedModel("pairs", recipe, model, objectives, torch.device("cpu")).compose([["a key"]])


def test_guidance_is_between_an_image_alone_and_the_image_that_follows_the_document(trained) -> None:
    composer, d = Composer(trained.model, trained._images, torch.device("cpu")), trained.model.part("decoder")
    known = [["two green keys", picture(0), "now it is blue"], ["a key"] * 3, []]
    with torch.no_grad():
        sequences = [d.sequence(composer.read(document), ends=False)[0][None] for document in known]
        deaf, plain, double = ([d.start_image(ids, g)[0] for ids in sequences] for g in (0.0, 1.0, 2.0))
    for k in range(3):
        torch.testing.assert_close(deaf[k], plain[2], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(double[k], 2 * plain[k] - plain[2], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(plain[0], plain[1], atol=1e-3)
