"""The run that the goldens describe, with isolated stages and off-path probes."""
