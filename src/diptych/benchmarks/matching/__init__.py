"""Benchmarks that score images against texts: retrieval, classification, and captions that differ in a detail."""
