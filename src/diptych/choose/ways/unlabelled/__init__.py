"""Ways that use images without labels: those of the training part, or all test images together."""
