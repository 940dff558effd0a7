"""Objectives that learn from regions of images and their phrases."""
