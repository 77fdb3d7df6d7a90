"""Runs in MLflow: what a command of Skipstone wrote, logged, compared and registered."""
