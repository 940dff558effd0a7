"""Exports and curated sets on a model hub that speaks the API of the Hugging Face Hub: what would be sent, sending, fetching."""
