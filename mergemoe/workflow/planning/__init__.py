"""The jobs of a run: what they are, what they take, and what SLURM is asked for."""
