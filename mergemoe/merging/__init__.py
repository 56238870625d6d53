"""The numerics of one layer: feature rules, moments and least squares."""
