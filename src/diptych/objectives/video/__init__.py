"""Objectives over clips."""
