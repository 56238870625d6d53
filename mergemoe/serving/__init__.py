"""Compact checkpoints in programs that have experts of their own."""
