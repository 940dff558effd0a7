"""Tuning whole models of transformers that talk about images, on conversations of your own.

ways.py: the ways, each a recipe of which the only part is the model. tune.py: from a way to a run with its adapter and its table.
held.py: what the model said before and says after, on conversations that it did not learn from.
"""

from __future__ import annotations

from diptych.choose.talk.tune import tune
from diptych.choose.talk.ways import CHAT_WAYS, ChatWay, chat_way, talks

__all__ = ["CHAT_WAYS", "ChatWay", "chat_way", "talks", "tune"]
