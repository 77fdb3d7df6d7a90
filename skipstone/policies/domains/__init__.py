"""Domains of prompts: a classifier that tells them apart, and the policy that gives each its own setting."""
