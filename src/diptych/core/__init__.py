"""What every other part of Diptych stands on; it imports nothing of the others."""
