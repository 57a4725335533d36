"""Adding slots to a base graph."""
