"""The suite measured: faults planted from outside, clean controls, and what of them is detected.

``python -m tests.faults masked_batches`` plants the faults of a stage; see ``python -m tests.faults --help``.
"""
