"""Losses as functions, which objectives call."""
