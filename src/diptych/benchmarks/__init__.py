"""Judging: one way to score every paradigm, and what must stand beside a number."""
