"""The block formats of GGUF that the package gguf can quantize to: numbers of a block, and the bytes that it takes."""

BLOCKS = {"Q8_0": (32, 34), "Q5_1": (32, 24), "Q5_0": (32, 22), "Q4_1": (32, 20), "Q4_0": (32, 18)}
