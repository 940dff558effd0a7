"""A workbench for vision-language models."""
