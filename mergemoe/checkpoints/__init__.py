"""Checkpoint folders in Hugging Face's format: headers, shards, the hub, validation and cost."""
