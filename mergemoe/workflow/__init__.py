"""Configuration, planning and the ledger, for the Snakefile, the stages and the command line."""
