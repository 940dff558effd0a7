"""Red team: a taxonomy of harms and probes as data (YAML, apart from the code), a reader for both, and how answers are sorted."""
