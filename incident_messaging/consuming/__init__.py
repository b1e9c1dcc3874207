"""The way of a delivery: from a backend's consumer to a handler, and from its verdict to a settlement."""
