"""Environments of jobs: as they were recorded, and one made anew for a rerun."""
