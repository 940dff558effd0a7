"""Benchmarks of generated captions."""
