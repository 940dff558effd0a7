"""Bringing an index up to date: what there is, what changed, reading it, vectors, near-duplicates."""
