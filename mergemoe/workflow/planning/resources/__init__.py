"""The needs of a job before it runs: memory, disk and work."""
