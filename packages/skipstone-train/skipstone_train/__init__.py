"""Training: agents that learn when to call the network."""
