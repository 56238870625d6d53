"""transformers' classes: where their experts lie, layer by layer runs, and plain copies."""
