"""Operators on the picture alone: size, quality, letters in it."""
