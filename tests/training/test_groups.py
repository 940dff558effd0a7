"""Contrast within groups of processes: how they are drawn, and a run of four processes against one that computes blocks."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from diptych.config.recipe import load_recipe
from diptych.core.encodings import IMAGE_EMBEDDING, TEXT, TEXT_EMBEDDING, Pass
from diptych.core.errors import DiptychError
from diptych.core.files import read_jsonl
from diptych.objectives.contrastive import InfoNCE, info_nce
from diptych.training.distributed import DIVISIONS, Cluster, grouping
from diptych.training.loop import train
from engine_fixture import TINY
from launch_fixture import launch

RUN = ["stages.0.batch_size=16", "stages.0.warmup=2", "stages.0.optimizer=adamw", "stages.0.lr=3e-4", "data.image_size=48"]
RUN += ["budget=160 samples"]


def test_every_process_is_in_one_group_and_groups_change() -> None:
    drawn = [grouping(12, 4, step) for step in range(3 * DIVISIONS)]
    for division in drawn:
        assert [len(ranks) for ranks in division] == [4, 4, 4] and sorted(r for ranks in division for r in ranks) == list(range(12))
        assert all(list(ranks) == sorted(ranks) for ranks in division)
    assert drawn[0] == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)]
    assert drawn[:DIVISIONS] == drawn[DIVISIONS : 2 * DIVISIONS] == drawn[2 * DIVISIONS :], "a schedule: resumed runs have the same"
    assert all(a != b for a, b in pairwise(drawn))
    met = {(a, b) for division in drawn for ranks in division for a in ranks for b in ranks}
    assert len(met) > 0.85 * 12 * 12, "in one round of the schedule nearly all have met; in fixed groups, a third"


def test_groups_that_do_not_divide_the_processes_are_refused() -> None:
    cluster = Cluster(0, 6)
    assert cluster.among(0, 3) is cluster and cluster.among(6, 3) is cluster and Cluster().among(4, 0).size == 1
    with pytest.raises(DiptychError, match="6 processes cannot be divided into groups of 4"):
        cluster.among(4, 0)


class Blocks(InfoNCE):
    """What ``processes`` processes in groups of ``share`` compute, by one: the mean over groups of the plain loss."""

    def __init__(self, model, *, processes: int = 4, share: int = 2):
        super().__init__(model)
        self.processes, self.share, self.step = processes, share, 0

    def forward(self, p: Pass) -> Tensor:
        image, text, meaning = p[IMAGE_EMBEDDING], p[TEXT_EMBEDDING], p[TEXT].meaning
        own, losses = p.size // self.processes, []
        for ranks in grouping(self.processes, self.share, self.step):
            rows = torch.cat([torch.arange(r * own, (r + 1) * own) for r in ranks])
            losses.append(info_nce(image[rows], text[rows], self.scale, None if meaning is None else meaning[rows]))
        return torch.stack(losses).mean()

    def after_step(self, total) -> None:
        super().after_step(total)
        self.step += 1


def losses(run: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_jsonl(run / "metrics.jsonl")}


@pytest.mark.slow
def test_four_processes_in_groups_do_what_one_does_block_by_block(tmp_path: Path) -> None:
    group = "stages.0.objectives.info_nce.group"
    jobs = [
        ["clip", str(tmp_path / name), [*RUN, *more]]
        for name, more in {
            "pairs": [f"{group}=2"],
            "pieces": [f"{group}=2", "stages.0.micro_batch=2"],
            "alone": [f"{group}=1"],
            "one": [f"{group}=4"],
            "plain": [],
        }.items()
    ]
    launch(jobs, processes=4)
    for share, names in {2: ("pairs", "pieces"), 1: ("alone",)}.items():
        kind = f"stages.0.objectives={{info_nce: {{kind: 'test_groups:Blocks', processes: 4, share: {share}}}}}"
        train(load_recipe("clip", [*TINY, *RUN, kind]), tmp_path / f"blocks{share}")
        want = losses(tmp_path / f"blocks{share}")
        for name in names:
            found = losses(tmp_path / name)
            steps = set(found) & set(want)
            assert {1, 10} <= steps
            assert all(found[k] == pytest.approx(want[k], rel=1e-5) for k in steps), name
    assert losses(tmp_path / "one")[10] == losses(tmp_path / "plain")[10] != losses(tmp_path / "pairs")[10]
    states = [
        load_file(sorted((tmp_path / name / "checkpoints").glob("step-*"))[-1] / "model.safetensors")
        for name in ("pairs", "blocks2")
    ]
    for n in states[0]:
        assert (states[0][n] - states[1][n]).norm() <= 2e-3 * states[1][n].norm() + 1e-3, n
