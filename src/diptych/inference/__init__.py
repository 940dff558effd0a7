"""A run, or a model of someone else, behind the capabilities that evaluation and serving know."""
