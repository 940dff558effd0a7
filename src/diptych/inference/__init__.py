"""Runs and models of other libraries behind the capabilities that evaluation and serving use."""
