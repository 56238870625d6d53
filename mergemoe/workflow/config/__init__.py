"""params.yaml: a section of it is a file here."""
