"""Layer-wise reconstruction: fit gate, up and down of merged experts to the layer's original routed output."""
