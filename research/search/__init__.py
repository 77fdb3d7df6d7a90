"""Which search is worth its calls: see README.md."""
