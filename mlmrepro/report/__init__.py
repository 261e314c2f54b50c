"""Showing: what a person sees of a run. Reads records; needs neither torch nor transformers."""
