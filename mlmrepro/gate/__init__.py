"""Statistics only: whether a checkpoint got worse, on the same masks of the same text. Needs no torch."""
