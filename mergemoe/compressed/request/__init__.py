"""Check what `compress` is asked for, its arguments and its model, before anything is computed."""
