"""``diptych adapt`` of models of transformers that talk: what is learned, stopped and resumed, adapters in peft, merged exports."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cli_fixture
import talk_fixture
from cli_fixture import Cli
from diptych.api import load
from diptych.choose.talk import chat_way, talks, tune
from diptych.choose.talk.held import normal
from diptych.choose.talk.ways import ChatLora, settings_of
from diptych.choose.towers.fit import tower_recipe
from diptych.core.errors import DiptychError, Interrupted
from diptych.core.sample import Turn
from diptych.inference.export import export
from diptych.inference.foreign.tuned import Tuned
from diptych.training.checkpoint import Checkpoint, find_checkpoint
from diptych.training.distributed import Cluster
from diptych.training.flops import FlopMeter
from diptych.training.gradient import BatchGradient, Pieces, Share
from diptych.training.start.setup import set_up, training_loader

cli = cli_fixture.cli
RED, BLUE = talk_fixture.square("red"), talk_fixture.square("blue", (64, 40))
ASKED = [
    Turn("user", "<image>\n<image>\nwhat colour is it?"),
    Turn("assistant", "red"),
    Turn("user", "is the second one the same?"),
]
SHORT = {"batch_size": 6, "lr": 1e-2, "rank": 4, "alpha": 8, "dropout": 0.0}
FULL = {"precision": "fp32", "budget": "4steps"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("talk")


@pytest.fixture(scope="module")
def data(place: Path) -> str:
    return talk_fixture.conversations(place / "data")


@pytest.fixture(scope="module")
def base(place: Path) -> str:
    return f"hf:{talk_fixture.llava(place / 'llava')}"


@pytest.fixture(scope="module")
def run(place: Path, base: str, data: str) -> Path:
    tune(base, ChatLora, data, place / "run", settings=SHORT, overrides={"precision": "fp32"}, budget="8steps", most=0)
    return place / "run"


def logits(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        made: torch.Tensor = model(**inputs).logits
    return made


def inputs_of(model: Tuned, ask: bool = True) -> dict[str, Any]:
    return model.chat.batch([(ASKED, [RED, BLUE])], ask=ask).inputs


# --- learning ---


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_the_loss_is_that_of_the_answers_and_pieces_do_not_change_it(family: str, tmp_path: Path, data: str) -> None:
    """Against a plain sum over learned tokens, conversation by conversation, without padding; the gradient whole and in pieces."""
    address = f"hf:{talk_fixture.FAMILIES[family](tmp_path / family)}"
    recipe = tower_recipe(address, settings_of(ChatLora, SHORT), data, overrides={"precision": "fp32"})
    setup = set_up(recipe, device=torch.device("cpu"))
    stage = recipe.stages[0]
    setup.model.train_only(stage.train)
    setup.model.train()
    for p in (adapter := setup.model.adapters["chat"]).own():  # type: ignore[operator]
        torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(p.numel()))
    loader = training_loader(setup, stage, setup.source)
    gradients: dict[int | None, Any] = {}
    for micro in (None, 2):
        for p in adapter.own():  # type: ignore[operator]
            p.grad = None
        work = BatchGradient(setup.model, Cluster(), False, 0, FlopMeter())
        taken = work(0, Pieces(Share(loader, 0, Cluster(), micro), 0), {"answers": setup.objectives["answers"]}, {"answers": 1.0})  # type: ignore[dict-item]
        gradients[micro] = float(taken.losses["answers"]), [p.grad.clone() for p in adapter.own()]  # type: ignore[operator, union-attr]
    assert gradients[None][0] == pytest.approx(gradients[2][0], rel=1e-5)
    for whole, pieces in zip(gradients[None][1], gradients[2][1], strict=True):
        assert torch.allclose(whole, pieces, atol=1e-6) and whole.abs().max() > 0
    chat, part = setup.tokenizer, setup.model.part("chat")
    total, count = 0.0, 0
    batch = loader.batch(0)
    by_id = {setup.source[i].id: setup.source[i] for i in range(len(setup.source))}
    setup.model.eval()
    for name in batch.ids:
        sample = by_id[name]
        made = chat.batch([(sample.turns, sample.images)])  # type: ignore[attr-defined]
        out = logits(part.model, made.inputs)[0].double().numpy()
        ids = made.inputs["input_ids"][0].tolist()
        for t in range(1, len(ids)):
            if made.learned[0, t]:
                row = out[t - 1]
                total -= row[ids[t]] - (row.max() + math.log(np.exp(row - row.max()).sum()))
                count += 1
    assert gradients[None][0] == pytest.approx(total / count, rel=1e-4)


def test_only_the_adapter_learns_and_the_loss_falls(run: Path, base: str) -> None:
    saved = Checkpoint.load(find_checkpoint(run / "checkpoints", "last"), restore_random=False)
    assert saved.model and all("lora_" in name and "language_model" in name for name in saved.model)
    tuned, before = Tuned.load(run), load(base)
    inputs = inputs_of(tuned)
    assert not torch.equal(logits(tuned.model, inputs), logits(before.model, inputs))  # type: ignore[attr-defined]
    with tuned.before():
        assert torch.equal(logits(tuned.model, inputs), logits(before.model, inputs))  # type: ignore[attr-defined]
    asked = "what colour is it?"
    assert tuned.loglikelihood([RED], ["red"], asked) > before.loglikelihood([RED], ["red"], asked) + 0.2


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(place: Path, base: str, data: str, run: Path) -> None:
    """Ctrl-C in step 3 saves; the same command finishes, with the weights of the run that was not stopped."""
    seen: list[int] = []

    def stop(row: dict[str, Any]) -> None:
        """Ctrl-C at the first line of the log."""
        seen.append(row["step"])
        if len(seen) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    how: dict[str, Any] = {"settings": SHORT, "overrides": {"precision": "fp32"}, "budget": "8steps", "most": 0}
    with pytest.raises(Interrupted, match="SIGINT: saved at step 2 .*; the same command goes on from there"):
        tune(base, ChatLora, data, place / "stopped", **how, steps=stop)
    assert not (place / "stopped" / "adapter").exists()
    result = tune(base, ChatLora, data, place / "stopped", **how)
    assert result["steps"] == 8
    ours, theirs = (find_checkpoint(path / "checkpoints", "last") for path in (place / "stopped", run))
    assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
    with pytest.raises(DiptychError, match="choose another --out"):
        tune(base, ChatLora, f"{data}?broken=skip", place / "stopped", **how)


# --- what the run is ---


def test_the_adapter_opens_in_peft(run: Path, base: str) -> None:
    import peft
    from transformers import AutoModelForImageTextToText

    tuned = Tuned.load(run)
    said = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert said["r"] == 4 and said["lora_alpha"] == 8 and said["base_model_name_or_path"] == base.removeprefix("hf:")
    bare = AutoModelForImageTextToText.from_pretrained(said["base_model_name_or_path"])
    theirs = peft.PeftModel.from_pretrained(bare, run / "adapter").eval()
    inputs = inputs_of(tuned)
    assert torch.allclose(logits(theirs, inputs), logits(tuned.model, inputs), atol=1e-6)


def test_the_merged_export_is_the_run(run: Path) -> None:
    """Logits to 1e-5, and the same words by transformers' pipeline, by ``hf:`` and by the run."""
    from PIL import Image
    from transformers import AutoModelForImageTextToText, pipeline

    tuned = Tuned.load(run)
    made = export(run)
    inputs = inputs_of(tuned)
    assert torch.allclose(
        logits(AutoModelForImageTextToText.from_pretrained(made.path).eval(), inputs), logits(tuned.model, inputs), atol=1e-5
    )
    answer = tuned.converse([RED, BLUE], ASKED, 12)
    shown = [{"type": "image", "image": Image.fromarray(image)} for image in (RED, BLUE)]
    said = [
        {"role": "user", "content": [*shown, {"type": "text", "text": "what colour is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
        {"role": "user", "content": [{"type": "text", "text": "is the second one the same?"}]},
    ]
    talk = pipeline("image-text-to-text", model=str(made.path))
    written = talk(text=said, max_new_tokens=12, return_full_text=False, generate_kwargs={"do_sample": False})
    assert written[0]["generated_text"].strip() == answer and answer
    again: Any = load(f"hf:{made.path}")
    assert again.converse([RED, BLUE], ASKED, 12) == answer
    assert again.loglikelihood([RED], ["red"], "what colour is it?") == pytest.approx(
        tuned.loglikelihood([RED], ["red"], "what colour is it?"), abs=1e-4
    )
    assert json.loads((made.path / "config.json").read_text())["architectures"] == ["LlavaForConditionalGeneration"]
    assert 'pipeline("image-text-to-text"' in (made.path / "README.md").read_text()
    with pytest.raises(DiptychError, match="exported as its own class"):
        export(run, to="open_clip")


def test_adapters_may_stay_apart(run: Path, base: str, tmp_path: Path) -> None:
    import peft
    from transformers import AutoModelForImageTextToText

    tuned = Tuned.load(run)
    made = export(run, out=tmp_path / "apart", adapters=True)
    bare = AutoModelForImageTextToText.from_pretrained(made.path).eval()
    inputs = inputs_of(tuned)
    with tuned.before():
        assert torch.equal(logits(bare, inputs), logits(tuned.model, inputs))
    theirs = peft.PeftModel.from_pretrained(bare, made.path / "adapter").eval()
    assert torch.allclose(logits(theirs, inputs), logits(tuned.model, inputs), atol=1e-6)


def test_the_run_talks_and_streams(run: Path) -> None:
    tuned: Any = load(run)
    assert isinstance(tuned, Tuned) and {"generate", "prompt", "loglikelihood", "score"} <= tuned.capabilities
    whole = tuned.converse([RED, BLUE], ASKED, 12)
    writing = tuned.stream([RED, BLUE], ASKED, 12)
    assert "".join(writing) == whole and writing.finish in ("stop", "length") and 0 < writing.tokens <= 12
    drawn = [tuned.converse([RED, BLUE], ASKED, 12, temperature=2.0, seed=k) for k in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1] and len(set(drawn)) > 1
    single = tuned.generate([RED], "what colour is it?", 6)
    assert single == [tuned.converse([RED], [Turn("user", "<image>\nwhat colour is it?")], 6)]
    with pytest.raises(DiptychError, match="decode with beams"):
        tuned.converse([RED, BLUE], ASKED, beams=3)
    with pytest.raises(DiptychError, match="image count mismatch"):
        tuned.converse([RED], ASKED)


# --- the command ---


def test_the_command(cli: Cli, place: Path, base: str, data: str, tmp_path: Path) -> None:
    """A table of before and after on held-out conversations and on other data; JSON; chat and caption with the run."""
    other = talk_fixture.conversations(tmp_path / "other", 1)
    said = cli("adapt", base, "--way", "lora", "--data", data, "--other", other, "--budget", "3steps", "--out", "tuned",
               "--set", "batch_size=6", "--set", "rank=2", "--set", "targets=[q_proj, v_proj]", "--json")  # fmt: skip
    assert said.code == 0, said.err
    result = json.loads(said.out)
    held, kept = result["compared"]
    assert held["role"] == "held-out" and held["data"] == data and kept["role"] == "other"
    assert kept["conversations"] > 0 and kept["answers"] >= kept["conversations"]
    model = Tuned.load(Path("tuned"))
    talk = model.chat.batch([([Turn("user", "is red the 0 same?"), Turn("assistant", "yes it is not")], [])])
    assert int(talk.learned.sum()) > 3
    config = json.loads(Path("tuned/adapter/adapter_config.json").read_text())
    assert all(name.endswith(("q_proj", "v_proj")) and "vision" not in name for name in config["target_modules"])
    assert "| log P of a token of an answer |" in Path("tuned/before-after.md").read_text()
    again = cli("adapt", base, "--way", "lora", "--data", data, "--other", other, "--budget", "3steps", "--out", "tuned",
                "--set", "batch_size=6", "--set", "rank=2", "--set", "targets=[q_proj, v_proj]")  # fmt: skip
    assert again.code == 0 and "diptych chat tuned" in again.out and "weights learned" in again.out
    picture = next((place / "data").glob("red*.png"))
    shutil.copy(picture, tmp_path / "red.png")
    asked = cli("chat", "tuned", "red.png", "--prompt", "what colour is it?", "--json")
    assert asked.code == 0 and "answer" in json.loads(asked.out)
    assert cli("caption", "tuned", "red.png").code == 0


def test_the_comparison_is_a_plain_mean(run: Path, data: str) -> None:
    """Means over conversations of log P of a token, by a plain loop, before and after."""
    from diptych.choose.talk.held import compared, conversations
    from diptych.data.sources import open_source

    tuned = Tuned.load(run)
    asked = conversations(open_source(data).split("train"), 3)
    row = compared(tuned, asked, data, "held-out").plain()
    for when, expected in (("before", tuned.before), ("after", None)):
        means = []
        for _, turns, images in asked:
            made = tuned.chat.batch([(turns, images)])
            if expected is None:
                out = logits(tuned.model, made.inputs)[0].double().log_softmax(-1)
            else:
                with expected():
                    out = logits(tuned.model, made.inputs)[0].double().log_softmax(-1)
            ids = made.inputs["input_ids"][0]
            picked = [float(out[t - 1, ids[t]]) for t in range(1, len(ids)) if made.learned[0, t]]
            means.append(sum(picked) / len(picked))
        assert row["likelihood"][when] == pytest.approx(sum(means) / len(means), rel=1e-4)
    assert normal("  No, it is  Blue.") == "no, it is blue"


def test_wrong_models_and_settings_are_refused(base: str, data: str, place: Path, tmp_path: Path) -> None:
    import foreign_fixture

    clip = f"hf:{foreign_fixture.clip(tmp_path / 'clip')}"
    assert talks(base) and not talks(clip) and not talks("runs/clip")
    with pytest.raises(DiptychError, match="tunes a model of transformers that writes text"):
        tune(clip, ChatLora, data, tmp_path / "out")
    with pytest.raises(DiptychError, match="unknown option 'ranks'; did you mean 'rank'"):
        tune(base, ChatLora, data, tmp_path / "out", settings={"ranks": 3})
    with pytest.raises(
        DiptychError, match="no linear layer with the names w1 in its language; its linear layers are called .*q_proj"
    ):
        tune(base, ChatLora, data, tmp_path / "out", settings={"targets": "w1"})
    with pytest.raises(DiptychError, match="there are lora, dora, full|there is no way"):
        chat_way("coop")
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps([{"id": "a", "conversations": [{"from": "human", "value": "hello"}]}]))
    with pytest.raises(DiptychError, match="no learned token at all|no samples|cannot be learned"):
        tune(base, ChatLora, f"llava:{wrong}?split=all" if False else f"llava:{wrong}", tmp_path / "out")


# --- other families, other ways ---


@pytest.mark.parametrize(
    ("family", "way", "on"),
    [
        ("qwen2_5_vl", "lora", ["language", "connector"]),
        ("idefics3", "dora", ["language"]),
        pytest.param("gemma3", "lora", ["language", "vision"], marks=pytest.mark.slow),
        pytest.param("internvl", "lora", ["language", "connector", "vision"], marks=pytest.mark.slow),
        pytest.param("llava_next", "lora", ["language"], marks=pytest.mark.slow),
        pytest.param("qwen2_vl", "dora", ["language"], marks=pytest.mark.slow),
        pytest.param("llava", "full", ["language", "connector"], marks=pytest.mark.slow),
        pytest.param("gemma3", "full", ["language"], marks=pytest.mark.slow),
    ],
)
def test_every_family_is_tuned_opened_and_exported(family: str, way: str, on: list[str], tmp_path: Path, data: str) -> None:
    import peft
    from transformers import AutoModelForImageTextToText

    place = talk_fixture.FAMILIES[family](tmp_path / family)
    settings = {"batch_size": 4, "lr": 1e-2, "on": on, **({"rank": 2, "dropout": 0.0} if way != "full" else {})}
    tune(
        f"hf:{place}",
        chat_way(way),
        data,
        tmp_path / "run",
        settings=settings,
        overrides={"precision": "fp32"},
        budget="2steps",
        most=0,
    )
    tuned = Tuned.load(tmp_path / "run")
    inputs = inputs_of(tuned)
    after = logits(tuned.model, inputs)
    with tuned.before():
        bare = AutoModelForImageTextToText.from_pretrained(place).eval()
        before = logits(tuned.model, inputs)
        assert torch.equal(logits(bare, inputs), before)
    assert not torch.equal(before, after)
    assert torch.equal(logits(tuned.model, inputs), after)
    if way != "full":
        theirs = peft.PeftModel.from_pretrained(bare, tmp_path / "run" / "adapter").eval()
        assert torch.allclose(logits(theirs, inputs), after, atol=1e-5)
    made = export(tmp_path / "run")
    merged = AutoModelForImageTextToText.from_pretrained(made.path).eval()
    assert torch.allclose(logits(merged, inputs), after, atol=1e-5)
    again: Any = load(f"hf:{made.path}")
    assert again.converse([RED, BLUE], ASKED, 6) == tuned.converse([RED, BLUE], ASKED, 6)
