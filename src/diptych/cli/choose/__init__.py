"""Commands that choose and adapt models."""
