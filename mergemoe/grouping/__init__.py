"""The grouping of experts, and how many experts each layer keeps."""
