"""Benchmarks of generated images."""
