"""Conversations about images: their forms, the chat template, token ids with what is learned of them, rows, batches."""
