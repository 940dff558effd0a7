"""Learning from pairs of answers: direct preference optimisation and its kin, reward models."""
