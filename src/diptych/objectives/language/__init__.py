"""Objectives of models between a vision tower and a frozen language model."""
