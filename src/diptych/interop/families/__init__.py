"""A file for each family of classes of other libraries: how its weights map to ours."""
