"""A run on disk: its directory, its stages, files that are whole or absent, progress."""
