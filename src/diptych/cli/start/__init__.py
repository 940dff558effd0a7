"""Verbs for the first minutes: what this machine has, and where to begin."""
