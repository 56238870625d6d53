"""Record, restore and audit results with git and DVC."""
