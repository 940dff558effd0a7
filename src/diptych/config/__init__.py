"""Recipes, budgets and every other YAML file: typed, checked, with errors that name the file, the key and the remedy."""
