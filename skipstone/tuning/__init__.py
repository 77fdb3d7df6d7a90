"""Grids found for a model: where its runs bend, how much of an error is left, and the best path of so many calls."""
