"""The joint solves of a layer whose Gram does not fit into memory: in the dual form, or by conjugate gradients."""
