"""Data sets on disk as records: one file per layout."""
