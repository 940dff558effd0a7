"""Unrelated texts and pictures that queries are compared with."""
