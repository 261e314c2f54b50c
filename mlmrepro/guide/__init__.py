"""The guide "Masked language modeling", one module per step; `run.py` runs the whole."""
