"""The joint solve of a layer whose sums do not fit into memory."""
