"""The jobs of a run, the resources that they need, and their requests to SLURM."""
