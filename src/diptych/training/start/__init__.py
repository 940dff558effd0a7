"""What a run begins with: its model, its data, weights from elsewhere, teachers."""
