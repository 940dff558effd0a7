"""Connectors: image tokens [B, N, D of the tower] to [B, N', D of the language model]. One class a kind."""

from diptych.models.connectors.mlp import MLP

CONNECTOR = {"mlp": MLP}
