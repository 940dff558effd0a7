"""Benchmarks: speed and memory of Diptych, compared with other libraries and with its own plain implementations. See README.md."""
