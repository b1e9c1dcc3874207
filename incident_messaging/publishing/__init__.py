"""The way of a publish: encoded, let into the window, handed over, and what became of it."""
