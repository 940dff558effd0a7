"""Verbs that say where and why a model is wrong."""
