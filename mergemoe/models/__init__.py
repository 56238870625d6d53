"""Models of transformers: where their experts lie, runs layer by layer, and plain copies of quantized checkpoints."""
