"""The formats of quantized weights.

BLOCKS are those of GGUF that the package gguf can quantize to: numbers of a block, and the bytes that it takes. FEWEST
and MOST are the bits of a weight on a grid of our own.
"""

FEWEST, MOST = 2, 8
BLOCKS = {"Q8_0": (32, 34), "Q5_1": (32, 24), "Q5_0": (32, 22), "Q4_1": (32, 20), "Q4_0": (32, 18)}
