"""An index of pictures: which there are, their vectors by one model, and search in them. Nothing here imports torch."""
