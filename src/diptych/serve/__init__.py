"""A server for one index and the models behind it: pages for search and chat, and an API. Nothing here imports torch."""
