"""A newsletter on Django."""
