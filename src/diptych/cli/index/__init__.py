"""Verbs of an index of pictures: make it or bring it up to date, search in it."""
