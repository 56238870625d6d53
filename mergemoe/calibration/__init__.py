"""From text to token sequences, captured activations and the profile of a layer."""
