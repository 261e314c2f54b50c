"""The guide "Masked language modeling", one module a step, in its order; `run.py` is the whole."""
