"""Operators on picture and text together: how well they fit, and captions written by a model."""
