"""What a model makes of clips besides what it makes of pictures."""
