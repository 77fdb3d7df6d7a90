"""Policies against samplers on the same prompts: what they cost and how close they come."""
