"""Formulas that several benchmarks share: pure functions of arrays and texts."""
