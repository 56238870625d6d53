"""Scores of a model: fidelity to the full one, generation and lm-eval."""
