"""Parts in which image and text tokens meet."""
