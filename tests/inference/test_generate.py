"""Writing: choices against plain references and transformers, beams against all texts there are, the cache against reading
everything again."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from transformers.generation import logits_process as hf

import cli_fixture
from batch_fixture import pass_of
from cli_fixture import Cli, make_photos
from diptych.api import evaluate, load
from diptych.benchmarks.tasks import task
from diptych.config.recipe import load_recipe
from diptych.core.batch import Texts as Words
from diptych.core.capabilities import FunctionModel
from diptych.core.encodings import Pass
from diptych.core.errors import DiptychError
from diptych.core.files import read_jsonl
from diptych.core.streaming import cut
from diptych.data.sources import open_source
from diptych.data.text import Tokenizer
from diptych.inference.generate import (
    Decoding,
    beam_search,
    choose,
    decoding_of,
    draws_of,
    generate,
    penalise,
    warp,
    write,
)
from diptych.models.layers.attention import Transformer
from diptych.models.layers.cache import KVCache
from diptych.models.layers.masks import attention_bias
from diptych.models.pretrained import CausalLM
from diptych.models.vlm import build_model

cli = cli_fixture.cli
CAPTIONS = ["a red fox left of a blue heart", "two green keys", "there is a big yellow house above a small pink star and no tree"]


def make(name: str, *overrides: str, length: int = 32):
    torch.manual_seed(0)
    recipe = load_recipe(name, list(overrides))
    model = build_model(recipe, Tokenizer.train(CAPTIONS, 400, length), 48).eval()
    rng = np.random.default_rng(0)
    return model, pass_of(model, [rng.integers(0, 256, (48, 48, 3), dtype=np.uint8) for _ in range(3)])


def beside(images: Pass, ids: Tensor) -> Pass:
    """The images next to texts without padding."""
    return images.view(text=Words(ids, torch.ones_like(ids, dtype=torch.bool)))


# --- choices ---


def plain_distribution(logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None) -> np.ndarray:
    """What sampling draws from, in float64: one row."""
    z = logits.astype(np.float64) / temperature
    order = np.argsort(-z, kind="stable")
    kept = list(order[: top_k or len(z)])
    p = np.exp(z[kept] - z[kept].max())
    p /= p.sum()
    if top_p is not None:
        n = next(i + 1 for i in range(len(kept)) if p[: i + 1].sum() >= top_p or i + 1 == len(kept))
        kept = kept[:n]
    out = np.zeros(len(z))
    out[kept] = np.exp(z[kept] - z[kept].max())
    return out / out.sum()


SETTINGS = [(0.7, None, None), (1.3, 5, None), (1.0, None, 0.8), (0.9, 20, 0.6), (1.0, 1, None), (1.0, None, 1e-6), (2.0, 999, 1.0)]


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), SETTINGS)
def test_the_distribution_equals_numpy_and_transformers(temperature: float, top_k: int | None, top_p: float | None):
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)) * 3
    ours = warp(logits, Decoding(temperature=temperature, top_k=top_k, top_p=top_p))
    plain = [plain_distribution(row.numpy(), temperature, top_k, top_p) for row in logits]
    np.testing.assert_allclose(ours.softmax(-1).numpy(), plain, atol=1e-6)
    theirs = hf.TemperatureLogitsWarper(temperature)(None, logits)
    if top_k is not None:
        theirs = hf.TopKLogitsWarper(top_k)(None, theirs)
    if top_p is not None:
        theirs = hf.TopPLogitsWarper(top_p)(None, theirs)
    torch.testing.assert_close(ours, theirs)


def test_tokens_are_drawn_as_often_as_they_are_likely():
    logits = torch.randn(8, generator=torch.Generator().manual_seed(1))
    decoding = Decoding(temperature=1.5, top_k=5)
    n = 20_000
    drawn = choose(logits.expand(n, -1), decoding, torch.from_numpy(np.random.default_rng(0).random(n)))
    p = plain_distribution(logits.numpy(), 1.5, 5, None)
    np.testing.assert_allclose(np.bincount(drawn.numpy(), minlength=8) / n, p, atol=4 * np.sqrt(0.25 / n))
    assert set(drawn.tolist()) == set(np.flatnonzero(p))


def test_the_ends_of_the_range_draw_tokens_that_may_be_drawn():
    logits = torch.tensor([[-9.0, 3.0, 2.0, -9.0]])
    ends = Decoding(top_k=2)
    assert choose(logits, ends, torch.tensor([0.0])).item() == 1
    assert choose(logits, ends, torch.tensor([1.0], dtype=torch.float64)).item() == 2


def test_repetition_is_penalised_as_in_transformers():
    logits, written = (
        torch.randn(3, 20, generator=torch.Generator().manual_seed(0)),
        torch.tensor([[1, 1, 4], [0, 2, 3], [5, 6, 5]]),
    )
    torch.testing.assert_close(penalise(logits, written, 1.7), hf.RepetitionPenaltyLogitsProcessor(1.7)(written, logits))
    assert penalise(logits, written[:, :0], 1.7) is logits


def test_a_generator_draws_from_the_same_distribution():
    logits = torch.randn(8, generator=torch.Generator().manual_seed(1)).expand(20_000, -1)
    draws = torch.rand(len(logits), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = choose(logits, Decoding(temperature=1.5, top_k=5, top_p=0.9), draws)
    p = plain_distribution(logits[0].numpy(), 1.5, 5, 0.9)
    np.testing.assert_allclose(np.bincount(drawn.numpy(), minlength=8) / len(logits), p, atol=4 * np.sqrt(0.25 / len(logits)))
    assert torch.equal(choose(logits, Decoding(temperature=0)), logits.argmax(-1))


def test_draws_depend_on_the_row_and_the_seed_alone():
    some, more = draws_of(Decoding(seed=3), [7, 8]), draws_of(Decoding(seed=3), [1, 8, 7])
    assert torch.equal(some, more[[2, 1]]) and not torch.equal(some, draws_of(Decoding(seed=4), [7, 8]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beams": 0}, "beams is 0; expected at least 1"),
        ({"top_p": 1.5}, "top_p is 1.5; expected above 0 and at most 1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"stop": ("",)}, "none of them empty"),
        ({"beams": 2, "top_p": 0.9}, "choose either"),
        ({"topp": 0.9}, "unknown setting 'topp'.*top_p"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict, message: str):
    with pytest.raises(DiptychError, match=message):
        decoding_of(**settings)


def test_what_samples():
    assert not Decoding().samples and not Decoding(temperature=0, top_k=3).samples
    assert Decoding(temperature=1).samples and Decoding(top_p=0.9).samples and Decoding(top_k=4).samples
    assert cut("a red fox. and more", (" and", ".")) == "a red fox" and cut("a fox", (".",)) == "a fox"


# --- loops, over a chain whose next token depends on all that stands before it ---


class Chain:
    """Logits drawn at random for every text over V tokens; row b of the batch has a language of its own."""

    def __init__(self, V: int, B: int, seed: int = 0, scale: float = 2.0):
        self.V, self.B, self.seed, self.scale = V, B, seed, scale

    def logits(self, b: int, text: tuple[int, ...]) -> np.ndarray:
        return np.random.default_rng([self.seed, b, len(text), *(i + 1 for i in text)]).normal(size=self.V) * self.scale

    def start(self) -> tuple[Tensor, Texts]:
        return self._of(Texts([(b, ()) for b in range(self.B)]))

    def step(self, ids: Tensor, texts: Texts) -> tuple[Tensor, Texts]:
        return self._of(Texts([(b, (*text, i)) for (b, text), i in zip(texts.rows, ids.tolist(), strict=True)]))

    def _of(self, texts: Texts) -> tuple[Tensor, Texts]:
        return torch.from_numpy(np.stack([self.logits(*row) for row in texts.rows])).float(), texts

    def log_likelihood(self, b: int, text: tuple[int, ...]) -> float:
        total = 0.0
        for t, token in enumerate(text):
            z = self.logits(b, text[:t])
            total += z[token] - np.log(np.exp(z - z.max()).sum()) - z.max()
        return total


class Texts:
    def __init__(self, rows: list[tuple[int, tuple[int, ...]]]):
        self.rows = rows

    def __getitem__(self, index: Tensor) -> Texts:
        return Texts([self.rows[i] for i in index.tolist()])


def all_texts(V: int, T: int, eos: int) -> list[tuple[int, ...]]:
    """Every text that ends at [EOS] or at T tokens."""
    inner = [i for i in range(V) if i != eos]
    ended = [(*text, eos) for n in range(T) for text in itertools.product(inner, repeat=n)]
    return [*ended, *itertools.product(inner, repeat=T)]


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_wide_beams_find_the_best_of_all_texts(alpha: float, seed: int):
    V, T, eos = 4, 4, 1
    chain = Chain(V, 3, seed)
    ids, scores = beam_search(
        chain.step, chain.start(), Decoding(max_tokens=T, beams=V**T, length_penalty=alpha), eos=(eos,), pad=-1
    )
    for b in range(3):
        best = max(all_texts(V, T, eos), key=lambda text: chain.log_likelihood(b, text) / len(text) ** alpha)
        assert tuple(i for i in ids[b].tolist() if i != -1) == best
        assert scores[b].item() == pytest.approx(chain.log_likelihood(b, best) / len(best) ** alpha, abs=1e-5)


def test_few_beams_are_no_worse_than_one_and_their_score_is_the_texts():
    chain, gain = Chain(6, 8, scale=1.0), 0.0
    for K in (1, 2, 5):
        how = Decoding(max_tokens=6, beams=K, length_penalty=0.0)
        ids, scores = beam_search(chain.step, chain.start(), how, eos=(1,), pad=-1)
        for b, row in enumerate(ids.tolist()):
            text = tuple(i for i in row if i != -1)
            assert (text[-1] == 1 or len(text) == 6) and 1 not in text[:-1]
            assert scores[b].item() == pytest.approx(chain.log_likelihood(b, text), abs=1e-4)
        assert scores.sum().item() >= gain or K == 1
        gain = scores.sum().item()


def test_one_beam_and_greedy_write_the_same_where_nothing_ends():
    chain = Chain(6, 4)
    greedy = generate(chain.step, chain.start(), Decoding(max_tokens=5))
    assert torch.equal(greedy, beam_search(chain.step, chain.start(), Decoding(max_tokens=5))[0])
    assert greedy.shape == (4, 5)


def test_rows_do_not_depend_on_their_neighbours():
    chain = Chain(6, 5)
    for how in (Decoding(max_tokens=6, beams=3), Decoding(max_tokens=6, top_p=0.9, seed=1)):

        def run(rows: list[int], how: Decoding = how) -> list[list[int]]:
            logits, state = chain.start()
            index = torch.tensor(rows)
            begun = logits[index], state[index]
            if how.beams > 1:
                ids = beam_search(chain.step, begun, how, eos=(1,), pad=0)[0]
            else:
                ids = generate(chain.step, begun, how, eos=(1,), pad=0, rows=rows)
            return [[i for i in row if i] for row in ids.tolist()]

        whole = run([0, 1, 2, 3, 4])
        assert run([3, 1]) == [whole[3], whole[1]] and run([2]) == [whole[2]]


def test_padding_follows_the_end_and_a_stop_ends_a_row():
    chain = Chain(5, 6)
    ids = generate(chain.step, chain.start(), Decoding(max_tokens=9, temperature=1.0), eos=(1, 2), pad=-1)
    for row in ids.tolist():
        end = next((t for t, i in enumerate(row) if i in (1, 2)), len(row))
        assert all(i == -1 for i in row[end + 1 :]) and all(i >= 0 for i in row[: end + 1])
    stopped = generate(chain.step, chain.start(), Decoding(max_tokens=9), pad=-1, stopped=lambda row: len(row) >= 2)
    assert stopped.shape == (6, 2)


# --- against transformers ---


@pytest.fixture(scope="module")
def gpt2() -> transformers.GPT2LMHeadModel:
    torch.manual_seed(1)
    config = transformers.GPT2Config(
        vocab_size=40, n_positions=40, n_embd=24, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=1, pad_token_id=2
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():  # less flat than fresh weights, so that there is something to find
        model.transformer.wte.weight.mul_(8)
    return model


@pytest.mark.parametrize(
    "settings", [{}, {"beams": 2}, {"beams": 4}, {"beams": 4, "length_penalty": 0.0}, {"beams": 3, "length_penalty": 2.0}]
)
@pytest.mark.parametrize("repetition", [1.0, 1.4])
def test_beams_and_greedy_write_what_transformers_writes(gpt2, settings: dict, repetition: float):
    lm = CausalLM(gpt2, None)  # type: ignore[arg-type]

    def step(ids: Tensor, past):
        hidden, past = lm.step(lm.embed(ids[:, None]), torch.ones(len(ids), 1, dtype=torch.bool), past)
        return lm.head(hidden[:, -1]), past

    B = 6
    embeds = torch.randn(B, 3, 24, generator=torch.Generator().manual_seed(5)) * 2
    how = Decoding(max_tokens=12, repetition_penalty=repetition, **settings)
    with torch.no_grad():
        hidden, past = lm.step(embeds, torch.ones(B, 3, dtype=torch.bool))
        begun = lm.head(hidden[:, -1]), past
    if how.beams > 1:
        ours = beam_search(step, begun, how, eos=(1,), pad=2)[0]
    else:
        ours = generate(step, begun, how, eos=(1,), pad=2)
    theirs = gpt2.generate(
        inputs_embeds=embeds,
        attention_mask=torch.ones(B, 3, dtype=torch.long),
        max_new_tokens=12,
        num_beams=how.beams,
        length_penalty=how.length_penalty,
        repetition_penalty=repetition,
        do_sample=False,
        early_stopping="never" if how.beams > 1 else False,
    )
    width = max(ours.shape[1], theirs.shape[1])
    ours, theirs = (torch.nn.functional.pad(x, (0, width - x.shape[1]), value=2) for x in (ours, theirs))
    assert torch.equal(ours, theirs)
    assert len({tuple(row) for row in ours.tolist()}) > 1


# --- the cache ---


@pytest.mark.parametrize("post_norm", [False, True])
def test_a_transformer_continues_what_it_has_read(post_norm: bool):
    torch.manual_seed(0)
    tower = Transformer(16, 3, 2, 12, post_norm=post_norm).eval()
    x, context = torch.randn(4, 9, 16), torch.randn(4, 5, 12)
    seen = torch.rand(4, 5) > 0.4
    looking = attention_bias(seen, 1, False, x)
    whole = tower(x, attention_bias(None, 9, True, x), context, looking)
    past, parts = tower.start(context), []
    for piece in x.split([3, 1, 1, 4], 1):  # several at a time, or one
        y, past = tower.step(piece, past, context_bias=looking)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)
    rows = torch.tensor([2, 2, 0])
    forked, _ = tower.step(x[rows, :1], past[rows], context_bias=looking[rows])
    again, _ = tower.step(x[:, :1], past, context_bias=looking)  # a past is never changed
    torch.testing.assert_close(forked, again[rows])
    assert past.length == 9 and KVCache().length == 0


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("coca", []),
        ("coca", ["parts.decoder.queries=4"]),
        ("coca", ["parts.text={kind: clip}"]),
        ("coca", ["parts.vision={kind: coca, queries: 5}", "parts.text={kind: coca}", "parts.decoder={kind: coca}"]),
        ("blip", []),
        ("blip", ["parts.decoder.share=false"]),
        ("llava", ["parts.lm.kind=random", "parts.vision={kind: vit}"]),
        ("chameleon", []),
    ],
)
def test_cached_logits_equal_those_of_reading_everything(name: str, overrides: list[str]):
    model, images = make(name, *overrides)
    ids = torch.randint(4, len(model.tokenizer), (3, 20), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = model.tokenizer.bos
    with torch.no_grad():
        whole = beside(images, ids)["text.logits"]
        writer = model.part("lm" if "lm" in model.parts else "decoder")
        logits, state = writer.start(images[writer.begins_with])
        found = [logits]
        for t in range(1, 19):
            logits, state = writer.step(ids[:, t], state)
            found.append(logits)
    torch.testing.assert_close(torch.stack(found, 1), whole[:, :19], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "overrides"), [("coca", []), ("llava", ["parts.lm.kind=random", "parts.vision={kind: vit}"]), ("chameleon", [])]
)
def test_models_write_with_beams_and_samples(name: str, overrides: list[str]):
    model, images = make(name, *overrides)
    greedy, beams, sampled = (
        write(model, images, Decoding(max_tokens=6, **how)) for how in ({}, {"beams": 3}, {"temperature": 1.0})
    )

    def likelihood(ids: Tensor) -> Tensor:
        full = torch.cat([torch.full((3, 1), model.tokenizer.bos), ids, torch.full((3, 1), model.tokenizer.pad)], 1)
        with torch.no_grad():
            logp = beside(images, full)["text.logits"].float().log_softmax(-1)[:, : ids.shape[1]].gather(2, ids[..., None])[..., 0]
        real = ids != model.tokenizer.pad
        return (logp * real).sum(1) / real.sum(1)

    assert (likelihood(beams) >= likelihood(greedy) - 1e-5).all()
    assert sampled.shape[0] == 3 and (likelihood(sampled) < likelihood(greedy)).any()
    assert torch.equal(sampled, write(model, images, Decoding(max_tokens=6, temperature=1.0)))


def test_captions_end_where_the_text_tower_does():
    model, images = make("coca", length=8)
    assert write(model, images, Decoding(max_tokens=50)).shape[1] <= 7


# --- in use ---


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diptych.api import train

    out = tmp_path_factory.mktemp("runs") / "coca"
    small = ["stages.0.batch_size=16", *(f"parts.{p}.depth=1" for p in ("vision", "text", "decoder")), "data.image_size=48"]
    train("coca", "scenes:small", "320 samples", out, small)
    return out


def test_a_trained_model_decodes_as_it_is_told(run: Path):
    model = load(run)
    images = [open_source("scenes:small").split("test")[i].image for i in range(3)]
    plain, beams = model.generate(images), model.generate(images, beams=3)
    assert len(plain) == len(beams) == 3 and plain == model.generate(images, beams=1)
    drawn = model.generate(images, temperature=2.0, seed=1)
    assert drawn == model.generate(images, temperature=2.0, seed=1) != model.generate(images, temperature=2.0, seed=2)
    assert model.generate(images[::-1], temperature=2.0, seed=1) == drawn[::-1]  # by what is seen, not by place
    first, *_, last = drawn[0].split()
    assert model.generate(images[:1], temperature=2.0, seed=1, stop=(first,)) == [""]
    kept = model.generate(images[:1], temperature=2.0, seed=1, stop=(last,))[0]
    assert drawn[0].startswith(kept) and last not in kept and len(kept) < len(drawn[0])
    with pytest.raises(DiptychError, match="unknown setting 'beam'.*beams"):
        model.generate(images, beam=3)


def test_tasks_decode_as_they_are_told(run: Path, tmp_path: Path):
    source = open_source("scenes:small").split("test")
    found = {}
    for how in ("", "&beams=3&length_penalty=3", "&temperature=2&seed=1"):
        folder = tmp_path / (how or "plain")
        evaluate(load(run), source, [f"facts?n=4{how}"], folder)
        found[how] = [r["generated"] for r in sorted(read_jsonl(folder / "records" / "facts.jsonl"), key=lambda r: r["item"])]
    model, items = load(run), sorted(task("facts?n=4").items(source), key=lambda s: s.id)
    images = [item.image for item in items]
    assert found[""] == model.generate(images) and found["&beams=3&length_penalty=3"] == model.generate(
        images, beams=3, length_penalty=3.0
    )
    assert found["&temperature=2&seed=1"] == model.generate(images, temperature=2.0, seed=1)
    assert len({tuple(texts) for texts in found.values()}) == 3
    other = FunctionModel("other", generate=lambda images, prompts, n: [""] * len(images))
    assert evaluate(other, source, ["captions?beams=2"]).skipped == [
        {"task": "captions", "reason": "the model cannot write in another way (beams, temperature …)"}
    ]
    with pytest.raises(DiptychError, match="choose either"):
        task("captions?beams=2&top_p=0.9")
    with pytest.raises(DiptychError, match="cannot decode in another way"):
        other.generate(images, beams=2)


def test_the_command_line_captions(run: Path, cli: Cli, tmp_path: Path):
    make_photos(tmp_path / "photos", 4)
    (tmp_path / "photos" / "broken.png").write_bytes(b"no picture")
    shown = cli("caption", run, "photos", "--beams", 2)
    lines = [line.split("\t") for line in shown.out.splitlines()]
    assert shown.code == 0 and [name for name, _ in lines] == [f"photos/p{i:03d}.png" for i in range(4)]
    assert "photos/broken.png: " in shown.err
    rows = json.loads(cli("caption", run, "photos", "photos/p001.png", "--top-p", 0.9, "--seed", 3, "--json").out)
    assert len(rows) == 5 and [set(r) for r in rows] == [{"image", "problem"}, *[{"image", "caption"}] * 4]
    assert len(cli("caption", run, "--data", "scenes:small", "-n", 3).out.splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name either image files and folders or --data"),
        (["nowhere.jpg"], "nowhere.jpg: no such file or folder"),
        (["."], "no images in it"),
        (["x.png", "--beams", "2", "--top-p", "0.5"], "choose either"),
        (["x.png", "--top-p", "0"], "above 0 and at most 1"),
        (["broken.png"], "no picture could be captioned"),
    ],
)
def test_the_command_line_says_what_is_wrong(run: Path, cli: Cli, tmp_path: Path, arguments: list[str], message: str):
    if arguments == ["broken.png"]:
        (tmp_path / "broken.png").write_bytes(b"no picture")
    shown = cli("caption", run, *arguments)
    assert shown.code == 1 and message in shown.err
