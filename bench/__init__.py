"""Benchmarks: what Diptych costs, beside its peers and beside its own plain forms. See README.md."""
