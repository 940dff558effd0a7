"""Examples before the image that is asked about, and conversations of several images: among words, and where words look at
images."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cli_fixture import Cli, cli, make_photos  # noqa: F401
from conversations_fixture import Talker, picture, table
from diptych.api import load
from diptych.benchmarks.base import NotApplicable, retrieval_items
from diptych.benchmarks.run import evaluate
from diptych.benchmarks.shots import training_part, with_examples
from diptych.benchmarks.tasks import task
from diptych.config.recipe import load_recipe
from diptych.core.capabilities import FunctionModel, examples_for, prompts_for
from diptych.core.errors import DiptychError
from diptych.core.sample import Turn
from diptych.data.conversations.rows import laid_out
from diptych.data.conversations.template import IMAGE_ID
from diptych.data.conversations.turns import question
from diptych.data.sources import open_source
from diptych.inference.run import TrainedModel
from diptych.models.language.seen import Seen
from diptych.models.vlm import build_model
from diptych.objectives import build_objectives
from diptych.report.pages.task import settings_note
from diptych.report.sections.answers import Answers, TaskAnswers
from diptych.training.loop import train
from diptych.training.run_files import EvaluationFiles
from gated_fixture import idefics_layers

VIT = "parts.vision={kind: vit, depth: 1, width: 32, heads: 2}"
GATED = ["parts.connector={kind: resampler, tokens: 3}", "parts.fusion={kind: gated, every: 1, hidden: 32}"]
COMMON = ["parts.lm={kind: random}", VIT, "precision=fp32"]
OF = {
    "frozen": COMMON,
    "flamingo": [*COMMON, *GATED],
    "llava-joint": ["parts.lm={kind: random, prompts: true}", *COMMON[1:], "score=likelihood"],
}


def opened(model: Any) -> None:
    """Gates that let something through."""
    for layer in model.part("fusion").layers if model.part("lm").gated else []:
        layer.alpha.data.fill_(1.0)
        layer.beta.data.fill_(0.7)


def made(name: str, *overrides: str) -> TrainedModel:
    torch.manual_seed(0)
    recipe = load_recipe(name, [*OF[name], *overrides])
    model = build_model(recipe, None, 32)
    opened(model)
    return TrainedModel(name, recipe, model, build_objectives(recipe, model), torch.device("cpu"))


@pytest.fixture(scope="module", params=list(OF))
def writer(request: pytest.FixtureRequest) -> TrainedModel:
    return made(request.param)


@pytest.fixture(scope="module")
def flamingo() -> TrainedModel:
    return made("flamingo")


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    source = open_source("scenes:small").split("test")
    return [source[i].image for i in range(6)]  # type: ignore[misc]


TEXTS = ["a red fox left of a blue heart", "two green keys", "there is a big yellow house"]


def sequence(writer: TrainedModel, examples: list[Any], image: np.ndarray, text: str, prompt: str = "") -> torch.Tensor:
    """log P of a text behind examples, in float64, from the whole written out by hand and read at once."""
    model, lm = writer.model, writer.model.part("lm")
    bos, eos = model.tokenizer.bos, model.tokenizer.eos
    joint = lm._openings[0]
    shown = writer._images([*(e[0] for e in examples), image])["image.prefix"]
    N = shown.shape[1]
    before = [IMAGE_ID, *joint] if lm.gated else [*joint, *[IMAGE_ID] * N]
    ids = [] if lm.gated else [bos]
    for _, said, *own in examples:
        asked = own[0] if own else prompt
        ids += [*before, *model.tokenizer.pieces([asked])[0], *model.tokenizer.pieces([f" {said}" if asked else said])[0]]
    ids += [*before, *model.tokenizer.pieces([prompt])[0]]
    answer = [*model.tokenizer.pieces([f" {text}" if prompt else text])[0], eos]
    row = torch.tensor([[*ids, *answer]])
    learned = torch.zeros(row.shape, dtype=torch.bool)
    learned[0, len(ids) :] = True
    positions = torch.arange(row.shape[1])[None]
    logits = lm.answer_logits(row, shown, positions, learned)
    return logits.double().log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum()


@torch.no_grad()
def test_what_is_read_once_and_continued_equals_the_whole_sequence(writer: TrainedModel, pictures: list[np.ndarray]) -> None:
    """For different numbers of examples and prompts of different lengths in one call."""
    examples = [
        [(pictures[0], "two green keys"), (pictures[1], "a big red house")],
        [(pictures[0], "two green keys"), (pictures[1], "a big red house")],
        [(pictures[2], "no fox"), (pictures[1], "red", "what colour?"), (pictures[1], "a caption", "")],
        [],
    ]
    images, prompts = [pictures[3], pictures[3], pictures[4], pictures[5]], ["", "", "what is there in the picture?", "how many?"]
    texts = ["three hearts", "one", "a key", "two"]
    found = writer.loglikelihood(images, texts, prompts, examples)
    for k in range(4):
        assert found[k] == pytest.approx(float(sequence(writer, examples[k], images[k], texts[k], prompts[k])), abs=1e-4)


@torch.no_grad()
def test_greedy_words_are_the_likeliest_at_each_step(writer: TrainedModel, pictures: list[np.ndarray]) -> None:
    examples = [(pictures[0], "two green keys"), (pictures[1], "a big red house")]
    lm, tokenizer = writer.model.part("lm"), writer.model.tokenizer
    shown = writer._images([pictures[0], pictures[1], pictures[2]])["image.prefix"]
    image = lm.place(shown.shape[1])
    ids = [] if lm.gated else [tokenizer.bos]
    for _, said in examples:
        ids += [*image, *tokenizer.pieces([said])[0]]
    ids, begun = [*ids, *image], len(ids) + len(image)
    for _ in range(6):
        row = torch.tensor([ids])
        last = torch.zeros(1, len(ids) + 1, dtype=torch.bool)
        last[0, -1] = True
        padded = torch.cat([row, torch.tensor([[tokenizer.eos]])], 1)  # the token that is spoken of does not matter
        following = int(lm.answer_logits(padded, shown, torch.arange(len(ids) + 1)[None], last)[0].argmax())
        if following == tokenizer.eos:
            break
        ids.append(following)
    assert writer.generate([pictures[2]], max_tokens=6, examples=examples) == [tokenizer.decode(ids[begun:])]
    beams = writer.generate([pictures[2], pictures[3]], max_tokens=4, examples=examples, beams=2)
    drawn = writer.generate([pictures[2], pictures[3]], max_tokens=4, examples=examples, temperature=1.0)
    assert len(beams) == len(drawn) == 2


@torch.no_grad()
def test_examples_their_order_and_their_images_matter(writer: TrainedModel, pictures: list[np.ndarray]) -> None:
    one, other = (pictures[0], "two green keys"), (pictures[1], "a big red house")
    said = [
        float(writer.loglikelihood([pictures[2]], ["three hearts"], examples=examples)[0])
        for examples in ([one, other], [other, one], [(pictures[3], one[1]), other], [one, (pictures[3], other[1])], [one], [])
    ]
    assert len({round(value, 4) for value in said}) == len(said), said


@torch.no_grad()
def test_without_examples_all_is_as_ever(writer: TrainedModel, pictures: list[np.ndarray]) -> None:
    plain = writer.loglikelihood(pictures[:3], TEXTS)
    for none in ([], (), [[], [], []]):
        assert np.array_equal(plain, writer.loglikelihood(pictures[:3], TEXTS, examples=none))
        assert writer.generate(pictures[:3], max_tokens=5, examples=none) == writer.generate(pictures[:3], max_tokens=5)
    beside = writer.loglikelihood(pictures[:3], TEXTS, examples=[[], [(pictures[4], "a key")], []])  # one with, two without
    np.testing.assert_allclose(beside[[0, 2]], plain[[0, 2]], atol=1e-4)


@torch.no_grad()
def test_scores_are_likelihoods_behind_the_examples(flamingo: TrainedModel, pictures: list[np.ndarray]) -> None:
    examples = [(pictures[4], "a key"), (pictures[5], "no fox")]
    found = flamingo.score(pictures[:2], TEXTS, examples=examples)
    aligned = flamingo.loglikelihood([pictures[0]] * 3, TEXTS, examples=examples)
    np.testing.assert_allclose(found[0], aligned, atol=1e-4)
    pairs = flamingo.score(pictures[:2], TEXTS, np.array([[1, 2], [0, 1]]), examples=[examples, examples[:1]])
    assert pairs[0] == pytest.approx(float(flamingo.loglikelihood([pictures[1]], TEXTS[2:], examples=examples[:1])[0]), abs=1e-4)
    assert pairs[1] == pytest.approx(float(found[0, 1]), abs=1e-4)


def test_what_cannot_be_shown_is_refused(flamingo: TrainedModel, pictures: list[np.ndarray]) -> None:
    image = pictures[0]
    for examples, message in [
        ([(image, "a key"), [(image, "a key")]], r"expected \(image, text\) pairs, .* found \(tuple\)"),
        ([("a key", image)], r"found \(str, ndarray\)"),
        ([[(image, "a key")]] * 2, "2 lists of examples for 1 image;"),
        ([(image, "a key " * 40_000)], r"examples and image come to \d+ tokens; the language model reads \d+: show fewer"),
    ]:
        with pytest.raises(DiptychError, match=message):
            flamingo.generate([image], examples=examples)
    with pytest.raises(DiptychError, match="not trained to follow a prompt; show it examples"):
        flamingo.generate([image], "what is it?")
    recipe = load_recipe("coca", ["parts.vision={kind: vit, depth: 1}", "parts.text.depth=1", "data.tokenizer.vocab_size=300"])
    from diptych.data.text import Tokenizer

    coca = build_model(recipe, Tokenizer.train(TEXTS, 300, 32), 32)
    with pytest.raises(DiptychError, match="takes no examples: only a language model reads several images"):
        TrainedModel("coca", recipe, coca, build_objectives(recipe, coca), torch.device("cpu")).generate(
            [image], examples=[(image, "a key")]
        )


# --- which image a word looks at


def test_the_masked_layer_equals_idefics() -> None:
    theirs, ours = idefics_layers()
    x, shown = torch.randn(2, 6, 32), torch.randn(3, 7, 32)
    places = torch.tensor([[0, 1, 0, 0, 1, 0], [1, 0, 0, 0, 0, 0]]).bool()
    seen = Seen.latest(places, shown, 32)
    each = torch.tensor([[-1, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0]])  # as the processor of Idefics counts images
    assert torch.equal(seen.which, each)
    seen_by = (
        torch.nn.functional.one_hot(each.clamp_min(0), 2) * (each >= 0)[..., None]
    )  # [B, L, M], and from here on as IdeficsModel has it
    mask = seen_by[..., None].expand(-1, -1, -1, 7).reshape(2, 6, 14)
    mask = torch.where(mask[:, None].bool(), 0.0, torch.finfo(torch.float32).min)
    gate = (mask == 0.0).any(dim=-1).float().squeeze(1)
    expected = theirs(x, image_hidden_states=seen.tokens, image_attention_mask=mask, cross_attention_gate=gate)
    torch.testing.assert_close(ours(x, seen.tokens, seen.looks), expected, atol=1e-5, rtol=1e-5)


def test_the_last_image_before_a_position_by_hand() -> None:
    """Against loops: rows of several documents, some with no image, some with images before and behind their words."""
    rng = np.random.default_rng(0)
    places = torch.from_numpy(rng.random((5, 40)) < 0.15)
    places[3] = False
    lengths = [[7, 20, 13], [40], [1, 1, 38], [9, 31], [12, 28]]
    positions = torch.tensor([[t for n in row for t in range(n)] for row in lengths])
    shown = torch.arange(int(places.sum()), dtype=torch.float32)[:, None, None].expand(-1, 2, 3)  # an image's number is its place
    seen = Seen.latest(places, shown, 3, positions)
    number = -1
    for b in range(5):
        last = -1
        for t in range(40):
            last = -1 if positions[b, t] == 0 else last
            if places[b, t]:
                number += 1
                last = number
            found = seen.tokens[b][seen.looks[b, t]]
            assert found.shape == ((2, 3) if last >= 0 else (0, 3)) and bool((found == last).all())
        end = seen.last()
        assert torch.equal(end.tokens[b][end.looks[b, 0]], seen.tokens[b][seen.looks[b, -1]])


def documents(model: TrainedModel, *turns: Turn) -> tuple[torch.Tensor, ...]:
    """A conversation as a row of ids, what is learned of it, and its positions."""
    assert model.model.part("lm").gated
    from diptych.training.start.setup import chat_of

    document = chat_of(model.recipe, model.model).document(list(turns))
    ids, _, learned, positions = map(torch.from_numpy, laid_out([document], [[0]], 0))
    return ids, learned, positions


TALK = [question("what?"), Turn("assistant", "two keys"), question("and here?"), Turn("assistant", "a red fox"), Turn("user", "sure?"),
        Turn("assistant", "yes")]  # fmt: skip


def test_a_word_looks_at_the_last_image_only() -> None:
    """With the language model's own attention cut off, nothing of an earlier image reaches a later word, and no later one an
    earlier word."""
    model = made("flamingo", "parts.lm.depth=2")
    lm = model.model.part("lm")
    ids, _, positions = documents(model, *TALK)
    second = int((ids[0] == IMAGE_ID).nonzero()[1])
    shown = torch.randn(2, 3, lm.width, requires_grad=True)

    def reached(rows: slice) -> list[bool]:
        """Whether the hidden states of these positions depend on the first and the second image."""
        hidden = lm.lm.documents(lm.words_and_images(ids, shown), positions, lm._last_seen(ids, shown, positions))
        return [bool(g.any()) for g in torch.autograd.grad(hidden[0, rows].square().sum(), shown)[0]]

    first = int((ids[0] == IMAGE_ID).nonzero()[0])
    assert reached(slice(0, first)) == [False, False]
    assert reached(slice(first, second)) == [True, False]
    assert reached(slice(second, None)) == [True, True], "through what was said of the first"
    for layer in lm.lm.model.base_model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
    assert reached(slice(first, second)) == [True, False]
    assert reached(slice(second, None)) == [False, True]


def test_a_gated_models_conversation_is_continued_as_it_is_read_whole(flamingo: TrainedModel) -> None:
    """Left-padded prompts of no, one and two images read together, then continued from the cache."""
    lm = flamingo.model.part("lm")
    from diptych.training.start.setup import chat_of

    chat = chat_of(flamingo.recipe, flamingo.model)
    talks = [TALK, TALK[:2], [Turn("user", "hello"), Turn("assistant", "two small yellow keys")]]
    shown = torch.randn(3, 3, lm.width)
    images = [shown[:2], shown[2:], None]
    whole = [chat.document(t) for t in talks]
    rows = [d.ids[: len(d) - 3] for d in whole]
    T = max(map(len, rows))
    ids = torch.tensor([[flamingo.model.tokenizer.pad] * (T - len(row)) + row for row in rows])
    mask = torch.tensor([[False] * (T - len(row)) + [True] * len(row) for row in rows])
    last = torch.tensor([[0, *d.ids[-3:], 0] for d in whole])
    with torch.no_grad():
        read = lm.read(ids, mask, shown)
        found = lm.continue_logits(read, last, torch.ones_like(last, dtype=torch.bool))
        stepped, past = [lm.lm.head(read.last[:, -1])], read.cache
        for t in range(1, 4):
            logits, past = lm.step(last[:, t], past)
            stepped.append(logits)
        for k, d in enumerate(whole):
            row, learned = torch.tensor([[*d.ids, 0]]), torch.zeros(1, len(d) + 1, dtype=torch.bool)
            learned[0, -4:] = True
            expected = lm.answer_logits(row, images[k], torch.arange(len(d) + 1)[None], learned)
            torch.testing.assert_close(found[k], expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(torch.stack([s[k] for s in stepped]), expected, atol=1e-5, rtol=1e-5)


# --- learning from conversations of several images


INSTRUCT = ["stages.1.train=[connector, fusion]", *GATED]


def test_packed_and_padded_conversations_of_a_gated_model_learn_the_same(tmp_path: Path) -> None:
    """Loss and gradients, at once, in pieces, and several in a row; conversations with no image among them."""
    address = table(tmp_path)
    talkers = [Talker(address, 6, pack, *INSTRUCT) for pack in (False, True)]
    for talker in talkers:
        opened(talker.model)
    assert (talkers[1].batch()["turns"].ids == IMAGE_ID).sum() == 6, "a place an image"
    loss, expected = talkers[0].gradients(None)
    assert {n for n, g in expected.items() if g.any()} >= {
        "parts.fusion.layers.0.alpha",
        "parts.fusion.layers.1.attention.kv.weight",
    }
    for talker, micro in ((talkers[0], 2), (talkers[1], None), (talkers[1], 3)):
        other, found = talker.gradients(micro)
        assert other == pytest.approx(loss, rel=1e-5)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("gated", [False, True])
def test_examples_of_a_model_that_learned_conversations_are_turns(gated: bool, pictures: list[np.ndarray]) -> None:
    """Generated and scored as the conversation is that says the same; the likelihood as of the whole at once, in float64."""
    talker = Talker("scenes:small?ask=2", 2, False, *(INSTRUCT if gated else []))
    opened(talker.model)
    model = TrainedModel("talker", talker.recipe, talker.model, talker.setup.objectives, torch.device("cpu"))
    assert model.answering is not None and {"prompt", "examples"} <= model.capabilities
    examples = [(pictures[0], "red"), (pictures[1], "yes", "is it a key?")]
    turns = [
        question("what colour?"),
        Turn("assistant", "red"),
        question("is it a key?"),
        Turn("assistant", "yes"),
        question("what colour?"),
    ]
    said = model.generate(pictures[2:3], "what colour?", 5, examples)
    assert said == [model.converse(pictures[:3], turns, 5)]
    found = model.loglikelihood([pictures[2]] * 2 + [pictures[3]], ["blue", "green", "blue"], "what colour?", examples)
    for ours, image, answer in zip(found, [pictures[2]] * 2 + [pictures[3]], ["blue", "green", "blue"], strict=True):
        document = model.answering.chat.document([*turns, Turn("assistant", answer)])
        ids, _, learned, positions = map(torch.from_numpy, laid_out([document], [[0]], 0))
        learned &= torch.arange(ids.shape[1]) >= len(model.answering.chat.document(turns, ask=True))
        with torch.no_grad():
            shown = model.answering.side([*pictures[:2], image])["image.prefix"]
            logits = talker.model.part("lm").answer_logits(ids, shown, positions, learned)
        expected = logits.double().log_softmax(-1).gather(1, ids[learned][:, None]).sum()
        assert ours == pytest.approx(float(expected), abs=1e-4)
    with pytest.raises(DiptychError, match="the conversation has grown to"):
        model.loglikelihood(pictures[:1], ["red"], examples=[(pictures[0], "a key " * 200)])


# --- tasks and the command line


class Listening(FunctionModel):
    """Notes what it is shown, and says what the last example said."""

    def __init__(self, able: set[str]):
        super().__init__("listening", generate=lambda *_: [])
        self.capabilities = frozenset(able)
        self.heard: list[tuple[np.ndarray, str, list[Any]]] = []

    def generate(self, images, prompt="", max_tokens=32, examples=(), **decoding):
        rows = examples_for(examples, len(images))
        self.heard += zip(images, prompts_for(prompt, len(images)), rows, strict=True)
        return [row[-1].text if row else "nothing" for row in rows]

    def loglikelihood(self, images, texts, prompt="", examples=()):
        rows = examples_for(examples, len(images))
        self.heard += zip(images, prompts_for(prompt, len(images)), rows, strict=True)
        return np.array([len(t) for t in texts], dtype=np.float32)


def test_captions_behind_examples_of_the_training_part(tmp_path: Path) -> None:
    source = open_source("scenes:small").split("test")
    model = Listening({"generate", "examples"})
    summary = evaluate(model, source, ["captions?n=6&shots=3"], tmp_path)
    assert summary.value("captions", "cider") is not None, summary.skipped
    shown = [tuple((e.image.tobytes(), e.text) for e in row) for _, _, row in model.heard]
    assert len(shown) >= 7 and len(set(shown)) == 1 and len(set(shown[0])) == 3, "the same three for every item and the grey image"
    tested = {source[i].image.tobytes() for i in range(200)}  # type: ignore[union-attr]
    assert not tested & {image for image, _ in shown[0]}
    record = json.loads((tmp_path / "records" / "captions.jsonl").read_text().splitlines()[0])
    assert record["examples"] == [text for _, text in shown[0]] and record["generated"] == shown[0][-1][1]
    assert json.loads((tmp_path / "state.json").read_text())["tasks"]["captions"]["settings"]["shots"] == 3
    named: Any = SimpleNamespace(label="Listening")
    assert "Settings: n = 6, shots = 3" in settings_note(
        TaskAnswers("captions", [Answers(named, 0, EvaluationFiles(tmp_path), [])])
    )
    other = Listening({"generate", "examples"})
    evaluate(other, source, ["captions?n=6&shots=3&seed=1"])
    assert [e.text for e in other.heard[0][2]] != record["examples"], "another seed, other examples"
    without = Listening({"generate", "score"})
    skipped = evaluate(without, source, ["captions?n=6&shots=3", "vqa?n=20&shots=3", "pope?shots=1"]).skipped
    assert [s["reason"].partition(":")[0] for s in skipped[:2]] == ["the model takes no examples (shots=3)"] * 2
    assert skipped[2]["reason"] == "pope has no examples to show: leave out shots"


@pytest.mark.parametrize("way", ["generate", "likelihood"])
def test_questions_behind_answered_ones(way: str) -> None:
    """A model that follows no prompts is asked all the same; the controls see the same examples."""
    source = open_source("scenes:small").split("test")
    model = Listening({"generate", "loglikelihood", "score", "examples"})
    summary = evaluate(model, source, [f"vqa?n=20&shots=2&by={way}&prompt=Q: {{question}} A:"])
    assert summary.value("vqa", "accuracy") is not None, summary.skipped
    assert len({tuple((e.image.tobytes(), e.text, e.prompt) for e in row) for _, _, row in model.heard}) == 1
    for e in model.heard[0][2]:
        assert e.prompt.startswith("Q: ") and e.prompt.endswith("? A:") and e.text and "?" not in e.text
    grey = [prompt for image, prompt, _ in model.heard if (image == 128).all()]
    assert grey, "blind"
    lettered = Listening({"generate", "score", "examples"})
    evaluate(lettered, source, ["choices?n=8&shots=2"])
    assert all(e.text in "ABCDEF" for e in lettered.heard[0][2])


def test_an_item_that_is_judged_is_never_shown(tmp_path: Path) -> None:
    """Even where training data itself is judged; and where there are too few others, the task says so."""
    source = open_source(make_photos(tmp_path, 40))
    part = source.split("train")
    judged = retrieval_items(part, len(part) - 3)
    chosen = task("captions?shots=3")
    shown = with_examples(chosen, judged, part).examples
    names = {item.image.tobytes() for item in judged}
    assert len(shown) == 3 and not names & {e.image.tobytes() for e in shown}
    with pytest.raises(NotApplicable, match="shots=4: the training part of the data has 3 that can be shown"):
        with_examples(task("captions?shots=4"), judged, part)
    test = source.split("test")
    first, again = (with_examples(chosen, retrieval_items(test, 5), test).examples for _ in range(2))
    assert [e.text for e in first] == [e.text for e in again]
    mine = {part[i].image.tobytes() for i in range(len(part))}  # type: ignore[union-attr]
    assert {e.image.tobytes() for e in first} <= mine
    mixed = open_source(f"mix:0.5*{source.address}+0.5*scenes:small").split("test")
    assert training_part(mixed).address == f"mix:0.5*{source.address}?split=train+0.5*scenes:small?split=train"
    elsewhere = with_examples(task("captions?shots=2&train=scenes:small"), retrieval_items(test, 5), test).examples
    assert not {e.image.tobytes() for e in elsewhere} & mine


def test_a_run_captions_behind_examples_and_is_judged_so(cli: Cli, tmp_path: Path) -> None:  # noqa: F811
    few = ["stages.0.batch_size=4", "stages.0.warmup=0", "budget=8 samples", "data.train=scenes:small"]
    train(load_recipe("flamingo", [*OF["flamingo"], *few]), tmp_path / "run")
    picture(tmp_path / "a.png", (200, 10, 10))
    picture(tmp_path / "b.png", (10, 10, 200))
    shown = ["--example", "b.png", "two blue keys", "--example", "b.png", "blue"]
    done = cli("caption", "run", *shown, "a.png", "--max-tokens", 5, "--json")
    assert done.code == 0, done.all
    (said,) = json.loads(done.out)
    blue, red = (np.full((32, 32, 3), colour, np.uint8) for colour in ((10, 10, 200), (200, 10, 10)))
    model = load("run", "cpu")
    assert said["caption"] == model.generate([red], max_tokens=5, examples=[(blue, "two blue keys"), (blue, "blue")])[0]
    for wrong, message in [
        (["--example", "b.png"], "expected a picture and its caption"),
        (["--example", "b.png", "--json"], "expected a picture and its caption"),
        (["--example", "c.png", "words"], "--example c.png: No such file"),
    ]:
        refused = cli("caption", "run", "a.png", *wrong)
        assert refused.code != 0 and message in refused.all
    tasks = "captions?n=4&shots=2&max_tokens=4,vqa?n=20&shots=2&max_tokens=3,vqa?n=20&shots=2&by=score&name=stated"
    judged = cli("evaluate", "run", "--tasks", tasks, "--out", "judged")
    assert judged.code == 0, judged.all
    ways = {r["task"]: r["by"] for r in json.loads(Path("judged/summary.json").read_text())["results"]}
    assert ways == {"captions": "", "vqa": "generate", "stated": "score"}
