"""A run of the method ``reward`` as a judge of answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from diptych.core.capabilities import Image
from diptych.core.errors import DiptychError
from diptych.core.sample import Conversation, Sample, Turn
from diptych.data.conversations.turns import question
from diptych.data.fields import Context, Draw, build_fields
from diptych.data.preferences import Preference
from diptych.inference.run import TrainedModel
from diptych.objectives.preference.reward import Reward
from diptych.training.start.setup import chat_of

BATCH = 32


class RewardModel:
    """Rewards of answers to questions about one picture each. DiptychError for a run without the objective ``reward``."""

    def __init__(self, run: Path, device: str = "auto"):
        self.trained = TrainedModel.load(run, device)
        self.objective = next((o for o in self.trained.objectives.values() if isinstance(o, Reward)), None)
        if self.objective is None:
            raise DiptychError(f"{run} is no reward model; make one by diptych align RUN --method reward")
        recipe, model = self.trained.recipe, self.trained.model
        context = Context(model.tokenizer, model.image_size, chat=chat_of(recipe, model), own=recipe.data.fields)
        self.field = build_fields(["preferences"], context)["preferences"]

    @torch.no_grad()
    def rewards(
        self, images: Sequence[Image], prompts: Sequence[str], answers: Sequence[str], facts: Sequence[Sequence[str]] = ()
    ) -> np.ndarray:
        """float32 [N], larger is better; only differences between answers to one question mean anything. facts: true statements
        about each picture, for a model that learned with them.
        """
        from diptych.core.batch import Batch

        rows = []
        for i, (image, prompt, answer) in enumerate(zip(images, prompts, answers, strict=True)):
            pair = Preference(answer, answer, facts=tuple(facts[i]) if facts else ())
            turns = Conversation([question(prompt), Turn("assistant", answer)], [image])
            sample = Sample(str(i), {"preference": pair.plain()}, image=image, turns=turns)
            rows.append(sample)
        found = []
        device = next(self.trained.model.parameters()).device
        assert self.objective is not None
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            draws = [Draw(0, i, s, {"preferences": self.field.fit(s, lambda: None)}) for i, s in enumerate(part)]  # type: ignore[arg-type, return-value]
            collated = self.field.collate(draws)
            assert collated is not None
            batch = Batch({"preferences": collated}, len(part)).to(device)
            found.append(self.objective.rewards(self.trained.model.encode(batch))[0].float().cpu().numpy())
        return np.concatenate(found) if found else np.zeros(0, np.float32)
