"""Scores of a model: fidelity to the full model, generation and lm-eval."""
