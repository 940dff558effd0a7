"""Pictures of any size and shape: cut into tiles, or whole at their own size (``native``)."""
