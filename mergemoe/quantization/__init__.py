"""Quantization: experts rounded to few bits, by the weights alone or by the error of their outputs."""
