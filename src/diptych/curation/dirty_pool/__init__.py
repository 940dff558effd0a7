"""A synthetic pool with known faults, to try plans on."""
