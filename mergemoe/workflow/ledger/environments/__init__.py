"""Environments of jobs: the recorded ones, and one that is made for a rerun."""
