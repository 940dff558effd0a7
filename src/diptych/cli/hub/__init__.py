"""Verbs on exports and model hubs."""
