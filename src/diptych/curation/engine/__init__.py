"""How a plan is carried out: rows are read into shards, scored by workers, decided on, and written."""
