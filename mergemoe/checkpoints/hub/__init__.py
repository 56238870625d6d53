"""Models of the Hugging Face hub: their listing, bounded downloads, and the copy of one commit."""
