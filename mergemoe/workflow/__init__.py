"""What the Snakefile, the stages and the command line need: configuration, planning, the ledger."""
