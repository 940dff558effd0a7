"""Vision towers and what belongs to images."""
