"""Faults as people and releases make them, in the order of the guide's stages."""
