"""Recipes trained under one budget and evaluated on the same items."""
