"""Probes of what training left in a model: bias, memorisation, language priors, and the geometry of its embeddings."""
