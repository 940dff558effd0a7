"""Hashes by which copies and near-copies of pictures are found."""
