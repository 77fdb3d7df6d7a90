"""Skipstone makes pretrained diffusion models faster by adapting each run to its prompt."""

__version__ = "0.1.0"
