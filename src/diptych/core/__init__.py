"""What every other part of Diptych builds on; it imports none of the others."""
