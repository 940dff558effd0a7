"""Just what open_clip's import touches of torchvision. No benchmark calls any of it."""
