"""Rendered pages with known trees: ``pages:all`` (S4, Gao et al., arXiv:2403.03346)."""

from diptych.data.pages.source import Pages

__all__ = ["Pages"]
