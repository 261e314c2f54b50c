"""Observations: what is observed of a checkpoint and the libraries, held to a bound or compared with a golden."""
