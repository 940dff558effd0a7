"""``diptych align``: a run that learns from preferences, by the engine here or by trl."""
