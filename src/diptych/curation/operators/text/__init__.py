"""Operators on the text alone: length, quality, language, perplexity, concepts, hard negatives."""
