"""Files at local paths and fsspec URLs: listing, reading, the cache of remote files, hashes."""
