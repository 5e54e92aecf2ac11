"""The HTTP edge: the only door remote workers know."""
