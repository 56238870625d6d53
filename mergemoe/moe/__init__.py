"""One MoE layer as tensors: its experts, what they compute, its router and its calibration tokens."""
