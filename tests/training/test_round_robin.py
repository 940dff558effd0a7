"""Stages that learn from one group of objectives a step, in turn, and unpaired images and texts of the training data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diptych.config.recipe import Recipe, load_recipe
from diptych.core.errors import DiptychError, Interrupted
from diptych.core.sample import Captions, Sample
from diptych.data.sources import open_source
from diptych.training.checkpoint import checkpoints
from diptych.training.loop import Trainer, train
from diptych.training.start.setup import training_loader

SMALL = {
    "parts.quantizer.width": 16, "data.tokenizer.vocab_size": 320, "precision": "fp32", "trackers": [], "stages.main.batch_size": 8,
    **{f"parts.{p}.{k}": v for p in ("vision", "text", "fusion") for k, v in {"depth": 1, "width": 32, "heads": 2}.items()},
}  # fmt: skip
GROUPS = [["masked_codes"], ["masked_text"], ["info_nce", "masked_both", "matching"]]


def recipe(budget: str = "56 samples", **changes: Any) -> Recipe:
    """FLAVA's main stage alone, for seven steps."""
    read = load_recipe("flava", {**SMALL, "budget": budget, **changes})
    return read.model_copy(update={"stages": read.stages[1:]})


class Watched(Trainer):
    """Notes which parts and objectives got a gradient in each step, and the tokens that were read."""

    def __init__(self, *given: Any, **named: Any):
        super().__init__(*given, **named)
        self.learned: list[set[str]] = []
        self.read: list[float] = []

    def _update(self, *given: Any) -> Any:
        before = self.spent.tokens
        result = super()._update(*given)
        modules = {**dict(self.setup.model.parts.items()), **dict(self.setup.objectives.items())}
        self.learned.append({n for n, m in modules.items() if any(p.grad is not None for p in m.parameters())})
        self.read.append(self.spent.tokens - before)
        return result


def test_each_step_learns_from_the_next_group(tmp_path: Path) -> None:
    trainer = Watched(recipe(), tmp_path / "run")
    trainer.run()
    image, text = {"vision", "masked_codes"}, {"text", "masked_text"}
    both = {"vision", "text", "fusion", "space", "info_nce", "masked_both", "matching"}
    assert trainer.learned == [image, text, both, image, text, both, image]
    assert trainer.read[0] == 8 * 36 * 2, "pictures of pairs count as well, since they are read where there are no others"
    assert max(trainer.read[1], trainer.read[4]) < 8 * 32 * 2, "texts alone"


@pytest.mark.parametrize("micro", [None, 4])
def test_the_log_has_the_last_loss_of_each_objective(tmp_path: Path, micro: int | None) -> None:
    changes = {} if micro is None else {"stages.main.micro_batch": micro}
    seen: list[dict[str, float]] = []

    class Noted(Trainer):
        def _update(self, *given: Any) -> Any:
            result = super()._update(*given)
            seen.append(dict(result[0]))
            return result

    Noted(recipe("40 samples", **changes), tmp_path / "run").run()
    names = [set(losses) - {"loss"} for losses in seen]
    assert (
        names[0] == {"masked_codes"}
        and names[1] == {"masked_codes", "masked_text"}
        and names[4] == {name for group in GROUPS for name in group}
    )
    assert seen[1]["masked_codes"] == seen[0]["masked_codes"]
    assert seen[3]["masked_codes"] != seen[2]["masked_codes"] and seen[3]["matching"] == seen[2]["matching"]
    assert seen[4]["loss"] == pytest.approx(sum(v for n, v in seen[4].items() if n != "loss"))


def test_a_resumed_round_robin_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    train(recipe(), tmp_path / "whole")

    class Stopper(Trainer):
        def _update(self, *given: Any) -> Any:
            if self.step == 4:
                self.stop = "SIGINT"
            return super()._update(*given)

    with pytest.raises(Interrupted):
        Stopper(recipe(), tmp_path / "halves").run()
    train(recipe(), tmp_path / "halves", resume=True)
    for file in ("model", "objectives", "optimizer"):
        whole, halves = (
            load_file(checkpoints(tmp_path / d / "checkpoints")[-1] / f"{file}.safetensors") for d in ("whole", "halves")
        )
        assert whole.keys() == halves.keys()
        assert all(torch.equal(whole[n], halves[n]) for n in whole), file
    state = [json.loads((checkpoints(tmp_path / d / "checkpoints")[-1] / "state.json").read_text()) for d in ("whole", "halves")]
    assert state[0]["losses"] == state[1]["losses"] and set(state[0]["losses"]) == {name for group in GROUPS for name in group}


def test_the_first_step_after_a_resume_logs_all_losses(tmp_path: Path) -> None:
    train(recipe("32 samples"), tmp_path / "run")
    seen: list[dict[str, float]] = []

    class Noted(Trainer):
        def _update(self, *given: Any) -> Any:
            result = super()._update(*given)
            seen.append(dict(result[0]))
            return result

    Noted(recipe("40 samples"), tmp_path / "run", resume=True).run()
    assert set(seen[0]) == {"loss", *(name for group in GROUPS for name in group)}


class Pairs:
    """Forty pictures, each of one grey, with captions that say which."""

    address, problems = "pairs:", ()

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Sample:
        grey = np.full((48, 48, 3), 5 * index, dtype=np.uint8)
        return Sample(str(index), image=grey, text=Captions([f"grey number {index}"]))

    def fingerprint(self) -> str:
        return "pairs"

    def split(self, name: str) -> Pairs:
        return self


def test_unpaired_images_and_texts_are_those_of_the_training_data(tmp_path: Path) -> None:
    trainer = Trainer(recipe(), tmp_path / "run", Pairs())
    setup = trainer.setup
    loader = training_loader(setup, setup.recipe.stages[0], setup.source)
    order: dict[str, list[int]] = {"image": [], "unpaired_image": []}
    for step in range(5):  # an epoch
        batch = loader.batch(step)
        for name, shades in order.items():
            shades += [int(x) // 5 for x in batch[name].pixels[:, 0, 0, 0]]
        assert len(batch["unpaired_text"]) == 8
    assert sorted(order["image"]) == sorted(order["unpaired_image"]) == list(range(40))
    assert order["image"] != order["unpaired_image"]
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["unpaired"] == {"data.train": "pairs"} and list(environment["sources"]) == ["pairs:"]


def test_scenes_without_a_partner_are_other_scenes(tmp_path: Path) -> None:
    setup = Trainer(recipe(), tmp_path / "run").setup
    batch = training_loader(setup, setup.recipe.stages[0], open_source("scenes:small").split("train")).batch(0)
    assert not torch.equal(batch["image"].pixels, batch["unpaired_image"].pixels)


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ([["masked_codes"], ["maskd_text"]], "no objective 'maskd_text'; did you mean 'masked_text'"),
        (GROUPS[:2], "name each objective once"),
        ([*GROUPS, ["info_nce"]], "name each objective once"),
        ([*GROUPS, []], "groups that are not empty"),
    ],
)
def test_mistakes_in_a_round_robin_are_named(groups: list[list[str]], words: str) -> None:
    with pytest.raises(DiptychError, match=words):
        load_recipe("flava", {"stages.main.round_robin": groups})
