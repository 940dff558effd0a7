"""``scenes:text``: signs, labelled things and small print, with exact truth of every word."""
