"""What supports an alignment, and what follows from it."""
