"""Using a run that learned from conversations: prompts, likelihoods of answers, ``diptych chat``, tasks that ask."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cli_fixture import Cli, cli  # noqa: F401
from conversations_fixture import SMALL, picture
from diptych.api import load
from diptych.config.recipe import load_recipe
from diptych.core.errors import DiptychError
from diptych.core.sample import Turn
from diptych.data.conversations.rows import laid_out
from diptych.data.conversations.turns import question
from diptych.data.sources import open_source
from diptych.inference.run import TrainedModel
from diptych.training.loop import train

ASKED = "what colour is the fox?"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both stages, a few steps each."""
    out = tmp_path_factory.mktemp("runs") / "talker"
    batches = [f"stages.{i}.{key}" for i in (0, 1) for key in ("batch_size=4", "warmup=1")]
    train(load_recipe("llava-instruct", [*SMALL, *batches, "data.train=scenes:small?ask=2", "budget=24 samples"]), out)
    return out


@pytest.fixture(scope="module")
def model(run: Path) -> TrainedModel:
    return load(str(run), "cpu")  # type: ignore[return-value]


def images(n: int) -> list[np.ndarray]:
    source = open_source("scenes:small").split("test")
    return [source[i].image for i in range(n)]  # type: ignore[misc]


def test_both_stages_were_trained_and_prompts_can_be_followed(run: Path, model: TrainedModel) -> None:
    stages = {json.loads(line)["stage"] for line in (run / "metrics.jsonl").read_text().splitlines()}
    assert stages == {"align", "instruct"}
    assert {"prompt", "generate", "loglikelihood", "score"} <= model.capabilities


def test_an_answers_likelihood_is_that_of_reading_all_at_once(model: TrainedModel) -> None:
    """Read once and continued for many answers, against each conversation as a whole in float64."""
    one, other = images(2)
    pairs = [(one, "red"), (one, "two blue keys"), (other, "red")]
    found = model.loglikelihood([i for i, _ in pairs], [t for _, t in pairs], ASKED)
    assert model.answering is not None
    for (image, text), ours in zip(pairs, found, strict=True):
        document = model.answering.chat.document([question(ASKED), Turn("assistant", text)])
        ids, _, learned, positions = map(torch.from_numpy, laid_out([document], [[0]], 0))
        with torch.no_grad():
            shown = model.answering.side([image])["image.prefix"]
            logits = model.model.part("lm").answer_logits(ids, shown, positions, learned)
        expected = logits.double().log_softmax(-1).gather(1, ids[learned][:, None]).sum()
        assert ours == pytest.approx(float(expected), abs=1e-4)
    assert found[0] != found[2], "the image matters"
    assert model.loglikelihood([one], ["red"], "is it?")[0] != found[0], "so does the prompt"


def test_greedy_words_are_the_likeliest_at_each_step(model: TrainedModel) -> None:
    """Against reading the whole again for every token."""
    (image,) = images(1)
    assert model.answering is not None
    chat, lm = model.answering.chat, model.model.part("lm")
    ids = list(chat.document([question(ASKED)], ask=True).ids)
    begun = len(ids)
    with torch.no_grad():
        shown = model.answering.side([image])["image.prefix"]
        for _ in range(6):
            row = torch.tensor([ids])
            hidden = lm.lm.documents(lm.words_and_images(row, shown), torch.arange(len(ids))[None])
            following = int(lm.lm.head(hidden[:, -1]).argmax())
            if following in chat.ends:
                break
            ids.append(following)
    assert model.generate([image], ASKED, 6) == [model.model.tokenizer.decode(ids[begun:])]


def test_a_conversation_of_several_images_and_turns(model: TrainedModel) -> None:
    turns = [Turn("system", "be brief"), question("which?", 2), Turn("assistant", "the first"), Turn("user", "why?")]
    assert isinstance(model.converse(images(2), turns, max_tokens=4), str)
    with pytest.raises(DiptychError, match="image count mismatch: 2 times <image> in its turns, 1 image given"):
        model.converse(images(1), turns)
    with pytest.raises(DiptychError, match="the conversation has grown to"):
        model.converse(images(1), [question("why? " * 2000)])


def test_chat_on_the_command_line(run: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    picture(tmp_path / "a.png", (200, 10, 10))
    once = cli("chat", run, "a.png", "--prompt", ASKED, "--max-tokens", 5, "--json")
    assert once.code == 0
    said = json.loads(once.out)
    assert said["prompt"] == ASKED and said["images"] == ["a.png"]
    lines = iter([ASKED, "and why?"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines, ""))
    talk = cli("chat", run, "a.png", "--max-tokens", 5)
    assert talk.code == 0 and talk.out.split("\n")[0] == said["answer"] and talk.out.count("\n") == 2
    missing = cli("chat", run, "b.png", "--prompt", "what?")
    assert missing.code != 0 and "b.png: no such file" in missing.all


def test_tasks_that_ask_judge_such_a_run(run: Path, cli: Cli) -> None:  # noqa: F811
    """Yes or no and the options by likelihood, on scenes."""
    tasks = "pope?n=40&by=likelihood,vqa?n=40&by=likelihood"
    done = cli("evaluate", run, "--data", "scenes:small", "--tasks", tasks, "--out", "judged")
    assert done.code == 0, done.all
    results = [r for r in json.loads(Path("judged/summary.json").read_text())["results"] if r["metric"] == "accuracy"]
    assert [(r["task"], r["by"], r["n"]) for r in results] == [("pope", "likelihood", 40), ("vqa", "likelihood", 40)], done.all


def test_a_checkpoint_holds_the_adapters_and_not_what_they_adapt(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    few = [f"stages.{i}.{key}" for i in (0, 1) for key in ("batch_size=4", "warmup=0")]
    options = [*SMALL, *few, "parts.lm={kind: random, lora: {rank: 2}}", "data.train=scenes:small?ask=2", "budget=24 samples"]
    train(load_recipe("llava-instruct", options), tmp_path / "lora")
    trained = load(str(tmp_path / "lora"), "cpu").model  # type: ignore[attr-defined]
    saved = trained.saved_state()
    of_lm = {name for name in saved if name.startswith("parts.lm.")}
    assert of_lm and all("lora_" in name for name in of_lm)
    assert any(saved[name].abs().max() > 0 for name in of_lm if "lora_B" in name), "they begin at 0: these have learned"
