"""Reports: one self-contained page, a table in text, and the numbers as data."""

from diptych.report.pages.page import build_against, build_report, print_table
from diptych.report.pages.terminal import print_summary

__all__ = ["build_against", "build_report", "print_summary", "print_table"]
