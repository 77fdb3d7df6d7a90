"""Plain numbers and weighted sums: the mathematics under the engine."""
