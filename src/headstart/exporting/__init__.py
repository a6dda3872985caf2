"""A classifier in other forms, each held against the original before it is written."""
