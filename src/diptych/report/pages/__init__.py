"""The pages of a report, and the same as text, Markdown and data."""
