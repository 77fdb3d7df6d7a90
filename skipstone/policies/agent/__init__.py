"""The policy `agent`: actions, observations and checkpoints of trained agents."""
