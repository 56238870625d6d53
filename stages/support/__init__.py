"""What the stages and the Snakefile share; no rule runs these modules."""
