"""Modules that the stages and the Snakefile share; no rule runs them."""
