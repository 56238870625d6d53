"""Calibration: token sequences from text, captured activations, and the profile of a layer."""
