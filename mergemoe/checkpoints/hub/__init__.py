"""Models of the Hugging Face hub: their listing, bounded downloads, the copy of one commit and its record."""
