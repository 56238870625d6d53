"""The compressed model: its class, config and checkpoint; compress, load and save."""
