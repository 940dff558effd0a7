"""Conversations about images: their forms, the chat template, token ids and which of them are learned, rows, batches."""
