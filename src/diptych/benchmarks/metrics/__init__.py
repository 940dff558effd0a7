"""Metrics: pure functions over arrays and texts."""
