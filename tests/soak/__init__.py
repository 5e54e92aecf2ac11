"""A worker that is worked hard while it and its edge die at random."""
