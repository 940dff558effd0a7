"""``diptych data`` and ``diptych curate``: what happens to data before training."""
