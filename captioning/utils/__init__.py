"""Files, paths and packed strings."""
