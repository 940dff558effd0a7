"""Clips of the built-in world in which things act in many ways, with exact truth: ``scenes:clips?actions=all``."""
