"""MLX networks and pipelines."""
