"""A Hugging Face folder on disk: headers, shards, the hub, validation and cost."""
