"""``diptych align``: by the engine here and through trl, which must compute the same loss and the same gradient, and back as a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cli_fixture
from cli_fixture import Cli
from diptych.choose.align.recipe import METHODS, aligned_recipe
from diptych.choose.align.reward_model import RewardModel
from diptych.choose.align.rewards import description_reward, exact_reward
from diptych.choose.align.run import align
from diptych.choose.align.through_trl import Settings, read_back, row_of, trainer_of
from diptych.config.recipe import load_recipe
from diptych.core.errors import DiptychError
from diptych.data.sources import open_source
from diptych.inference.export import export
from diptych.inference.run import TrainedModel
from diptych.training.loop import train
from diptych.training.start.setup import Setup, loader_of, set_up

cli = cli_fixture.cli
DATA = "preferences:scenes:small?describe=0.5"
TINY = [
    "data.tokenizer={kind: bpe, vocab_size: 600}", "data.image_size=32", "data.conversations.max_length=128", "precision=fp32",
    "parts.vision={kind: siglip, depth: 1, width: 32, heads: 2, hidden: 64, patch: 16}",
    "parts.lm={kind: llama, width: 32, depth: 2, heads: 2, hidden: 64}", "stages.*.batch_size=8", "stages.*.warmup=1",
    "budget=32 samples", "trackers=[]",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that follows prompts, hardly trained."""
    return train(load_recipe("llava-instruct", TINY), tmp_path_factory.mktemp("aligned") / "talker").path


@pytest.fixture(scope="module")
def ours(run: Path) -> Setup:
    """The set-up of DPO on that run, of which the weights have moved away from the reference."""
    setup = set_up(aligned_recipe(run, METHODS["dpo"], DATA))
    setup.model.requires_grad_(False)
    moved = torch.Generator().manual_seed(1)
    learning = [*setup.model.part("connector").parameters(), *setup.model.adapters["lm"].own()]  # type: ignore[operator]
    with torch.no_grad():
        for p in learning:
            p.requires_grad_(True).add_(0.1 * torch.randn(p.shape, generator=moved))
    return setup


def trl_trainer(run: Path, setup: Setup, method: str, folder: Path, rows: list[dict[str, Any]]) -> Any:
    """trl's trainer for the weights of a set-up; its reference: the run."""
    import transformers
    import trl

    from diptych.interop import family_for

    export(run, out=folder / "before")
    trained = TrainedModel.load(run, "cpu")
    family = family_for("transformers", trained.recipe, setup.model, trained.objectives)
    folder.joinpath("now").mkdir()
    family.write(folder / "now", setup.model, trained.objectives)
    settings = Settings(batch_size=len(rows), steps=1)
    made = trainer_of(trl, METHODS[method], folder / "now", family.architecture, rows, settings, folder, {"connector", "lm"})
    before = getattr(transformers, family.architecture).from_pretrained(folder / "before").float().eval().requires_grad_(False)
    made.ref_model.load_state_dict(before.state_dict())
    return made


def inputs_of(trainer: Any, rows: Any) -> dict[str, Any]:
    """trl's batch of these rows, without the line break behind the end of an answer, which is not learned here."""
    inputs = trainer.data_collator([dict(row) for row in trainer.train_dataset.select(rows)])
    ended = inputs["input_ids"] == trainer.processing_class.tokenizer.eos_token_id
    inputs["completion_mask"] *= (ended.cumsum(1) - ended.int()) == 0
    return dict(inputs)


@pytest.mark.parametrize("method", ["dpo", "mpo"])
def test_loss_and_gradient_are_trls(run: Path, ours: Setup, method: str, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    source = open_source(DATA).split("train")
    loader = loader_of(ours, ours.recipe.stages[0], source, 4, 3, "none")
    samples = [source[loader.index(i)] for i in range(4)]
    rows = [row for sample in samples if (row := row_of(sample)) is not None]
    trainer = trl_trainer(run, ours, method, tmp_path, rows)
    options = METHODS[method].options
    objective = ours.objectives["dpo"].train()
    for name in ("preference", "quality", "generation"):
        setattr(objective, name, options.get(name, float(name == "preference")))
    objective.shift = False  # trl compares with 0
    ours.model.zero_grad()
    batches = [loader.batch(0)]
    if method == "mpo":  # trl's third loss is a mean over the batch's tokens, the paper's over each answer's: the same of one pair
        batches, rows = [loader.rows(0, 0, 1)], rows[:1]
    mine = objective(ours.model.encode(batches[0]))
    mine.backward()
    inputs = inputs_of(trainer, range(len(rows)))
    assert len(inputs["pixel_values"]) == 2 * len(rows)  # images are never dropped (trl's issue 5285)
    model = trainer.model.eval()
    theirs = trainer.compute_loss(model, dict(inputs))
    theirs.backward()
    assert float(mine.detach()) != pytest.approx(np.log(2) if method == "dpo" else 0, abs=1e-3)
    V = len(trainer.processing_class.tokenizer)
    more = np.log(V / (V - 1)) * (method == "mpo")  # the export has one word more, <image>, hardly likelier than others here
    assert float(mine.detach()) == pytest.approx(float(theirs.detach()) - more, rel=1e-4)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    first = next(g for name, g in gradients.items() if name.endswith("linear_1.weight"))
    own = next(p.grad for p in ours.model.part("connector").parameters())
    assert own is not None and torch.allclose(own, first[: len(own)], atol=1e-4 * float(own.abs().max()) + 1e-6)
    if method == "dpo":  # a pair alone has the loss that it has among others (trl's issue 5785)
        with torch.no_grad():
            alone = [float(trainer.compute_loss(model, inputs_of(trainer, [i]))) for i in range(len(rows))]
        assert np.mean(alone) == pytest.approx(float(theirs.detach()), rel=1e-4) and np.ptp(alone) > 1e-3


def test_export_reads_back_as_the_run_was(run: Path, tmp_path: Path) -> None:
    made = export(run, out=tmp_path / "out" / "export")
    read_back(run, made.path, tmp_path / "back", {"method": "sft"})
    before, after = (TrainedModel.load(path, "cpu") for path in (run, tmp_path / "back"))
    source = open_source("scenes:small?split=test")
    images = [source[i].image for i in range(4)]
    texts = ["a red fox", "two keys", "yes", "three blue cars left of a key"]
    one, two = (model.loglikelihood(images, texts, "what is it?") for model in (before, after))
    assert np.allclose(one, two, atol=1e-3) and not np.allclose(one, one[::-1], atol=1e-2)
    assert not after.recipe.adapters and str(after.recipe.weights).startswith("hf:")


def test_house_alignment_measures_before_and_after(run: Path, cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "dpo"
    words = ["align", str(run), "--data", DATA, "--budget", "16 samples", "--out", str(out), "--pairs", "12", "--set", "beta=0.4"]
    result = cli(*words, "--json")
    rows = {row["metric"]: row for row in json.loads(result.out)["preferences"]}
    assert set(rows) == {"accuracy", "margin", "swap"} and all(row["n"] == 12 for row in rows.values())
    assert rows["margin"]["after"] - rows["margin"]["before"] == pytest.approx(rows["margin"]["change"]["value"], abs=1e-6)
    recipe = load_recipe(str(out / "recipe.yaml"))
    assert recipe.stages[0].objectives["dpo"].options["beta"] == 0.4 and recipe.teachers["reference"].from_ == "start"
    assert json.loads((out / "alignment.json").read_text())["method"] == "dpo"
    with pytest.raises(DiptychError, match="holds a run already"):
        align(run, "dpo", DATA, out)


@pytest.mark.parametrize(
    ("method", "through", "given", "says"),
    [
        ("dop", "diptych", [], "there is no method 'dop'; did you mean 'dpo'"),
        ("grpo", "diptych", [], "only trl has it"),
        ("segments", "trl", [], "trl has no trainer for 'segments'"),
        ("dpo", "trl", ["betta=1"], "no such setting; did you mean 'beta'"),
        ("dpo", "trl", ["samples=1.5"], "expected int"),
        ("dpo", "trlx", [], "expected diptych or trl"),
        ("dpo", "diptych", ["bet=1"], "unknown key 'bet'"),
    ],
)
def test_wrong_words(run: Path, tmp_path: Path, method: str, through: str, given: list[str], says: str) -> None:
    with pytest.raises(DiptychError, match=says):
        align(run, method, DATA, tmp_path / "out", overrides=given, through=through)


def test_rewards_are_exact() -> None:
    assert exact_reward(" Two. ", "two") == 1 and exact_reward("two foxes", "two") == 0
    graph = {"things": [{"concept": "fox", "count": 2, "colour": "red", "size": ""}, {"concept": "key", "count": 1, "colour": "blue", "size": ""}],
             "relation": "left", "side": "", "position": "", "background": "paper"}  # fmt: skip
    assert description_reward("two red foxes left of a blue key", graph) == 1.0
    assert description_reward("two red foxes", graph) == 0.5
    assert description_reward("two green foxes left of a blue key", graph) == 0.0


def test_reward_model_judges_answers(run: Path, tmp_path: Path) -> None:
    made = align(run, "facts", DATA, tmp_path / "judge", "16 samples", pairs=6)
    assert made.judged["n"] == 6 and 0 <= made.judged["accuracy"] <= 1 and made.judged["swap"] != 0
    assert json.loads((made.run / "alignment.json").read_text())["judged"] == made.judged
    judge, image = RewardModel(made.run, "cpu"), open_source(DATA)[0].image
    one, two, told = judge.rewards([image] * 3, ["what?"] * 3, ["red", "blue", "red"], [[], [], ["a red fox"]])
    assert one != two and one != told
    assert judge.rewards([image], ["what?"], ["red"])[0] == pytest.approx(one, abs=1e-5)
    with pytest.raises(DiptychError, match="no reward model"):
        RewardModel(run)


def test_answers_that_are_all_wrong_teach_nothing(run: Path, tmp_path: Path) -> None:
    given = ["questions=2", "rollouts=2"]
    with pytest.raises(DiptychError, match="equally good: nothing to learn"):
        align(run, "vigor", "preferences:scenes:small?describe=0", tmp_path / "best", overrides=given)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "dpo", "mpo", "grpo"])
def test_methods_of_trl(run: Path, tmp_path: Path, method: str) -> None:
    pytest.importorskip("trl")
    given = ["samples=8", "steps=1", "lr=0.01", "max_tokens=4"]
    made = align(run, method, DATA, tmp_path / "out", overrides=given, through="trl", pairs=8)
    assert [r.metric for r in made.after] == ["accuracy", "margin", "swap"]
    before, after = (TrainedModel.load(path, "cpu") for path in (run, made.run))
    image = open_source(DATA)[0].image
    if method != "grpo":  # an untrained model is never right, so its rewards are equal and teach nothing
        assert not np.allclose(before.loglikelihood([image], ["yes"], "?"), after.loglikelihood([image], ["yes"], "?"), atol=1e-4)
