"""Operators that compare rows with each other or with an evaluation set: copies, near copies, equal meaning, leaks."""
