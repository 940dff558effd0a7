"""Weights in and out of other libraries: one file a family."""
