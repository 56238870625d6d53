"""The files between stages: atomic writes, digests, provenance and its verification."""
