"""Operators on the text: length, quality, language, perplexity, concepts, hard negatives."""
