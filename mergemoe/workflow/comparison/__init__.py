"""Comparison of results with recorded ones: summaries, bounds of rounding, near-ties, and the verdict."""
