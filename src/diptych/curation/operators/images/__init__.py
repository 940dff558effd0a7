"""Operators on the picture: size, quality, text in it."""
