"""Language models on text alone, without an image."""
