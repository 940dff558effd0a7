"""Parts that predict tokens."""
