"""Comparisons on one model: subjects, prompts, columns, references, statistics."""
