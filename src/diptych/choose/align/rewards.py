"""Rewards that can be verified: an answer is right or wrong by what is known of the picture, without a judge."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

from diptych.benchmarks.texts.facts import claim_credits, parse_caption


def plain(answer: str) -> str:
    """An answer in lower case, without white space around it and punctuation at its end."""
    return " ".join(answer.lower().split()).rstrip(string.punctuation + " ")


def exact_reward(text: str, answer: str) -> float:
    """1 if a text is the answer, apart from case, white space and punctuation at the end; else 0."""
    return float(plain(text) == plain(answer))


def description_reward(text: str, graph: Mapping[str, Any]) -> float:
    """Of a description of a scene: the share of the scene's groups that it names with their count, if all that it says is true;
    else 0. graph: the scene as plain data.
    """
    credits = claim_credits(parse_caption(text), dict(graph))
    return credits["all_true"] * credits["told"]


def reward(text: str, answer: str, graph: Mapping[str, Any] | None = None, description: bool = False) -> float:
    """The verifiable reward of a text: exact, or of a description of a scene by its facts."""
    return description_reward(text, graph) if description and graph else exact_reward(text, answer)
