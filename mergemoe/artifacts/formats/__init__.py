"""File formats, read with care: safetensors headers and HDF5 attributes, checked before what they lead to."""
