"""A trained run that reads pictures with fewer tokens, at equal weights: ``fewer:RUN?…``."""
